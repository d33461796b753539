"""Readers of files that a user or another machine hands over, and a valid file for each."""

import contextlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import cv2
import numpy as np

from deploy.edge.capture import Source, is_animated
from deploy.edge.detect import read_card
from deploy.edge.ladder import read_ladder
from heat.cli import main
from heat.commands.fleet_file import read_fleet
from heat.stages.network import load_network
from heat.thinning.source import load_supernet
from heat.thinning.thinned import find_thinned
from heat.views.outputs import is_pack
from heat.workspace import Workspace
from latency_tables.device_file import load_device
from latency_tables.devices import declared
from latency_tables.estimate import estimated_table
from latency_tables.pack import probe_version, table_from_results
from latency_tables.plan import space_entries
from latency_tables.probe.program import RESULTS_FORMAT, Pack
from latency_tables.probe.setting import REFERENCES, Model, Setting
from latency_tables.roofline import Efficiencies
from latency_tables.table_file import read_table, write_table
from latency_tables.terms import terms
from supernet.atomic import check_replaceable
from supernet.checkpoint import read_info
from supernet.data.coco import load_split
from supernet.data.format_names import Format
from supernet.data.formats import format_of, read_export
from supernet.data.shapes import make_shapes
from supernet.graph.style import FORMS_VERSION
from supernet.heatdetr.supernet import SearchSpace
from supernet.letterbox import read_image
from supernet.network import read_architecture
from supernet.train.transfer import read_source
from tests.fuzzed_models import (
    CARD,
    read_bundle,
    read_elastic,
    read_encoder,
    read_features,
    read_model,
    read_seen,
    read_teacher,
    small,
    write_bundle,
    write_checkpoint,
    write_elastic,
    write_features,
    write_image,
    write_model,
    write_seen,
    write_teacher,
)
from tests.tool_exports import write_cvat_export, write_tasks, write_voc_export
from tests.toy_encoders import write_encoder


@dataclass(frozen=True)
class Reader:
    """A reader and the valid files that it is fuzzed with."""

    read: Callable[[Path], object]
    """Given the folder of a case."""
    write: Callable[[Path], None]
    """Writes a valid case into an empty folder."""
    files: tuple[str, ...]
    """Which of its files are mutated."""


def write_coco(folder: Path) -> None:
    make_shapes(folder, train=2, val=1)


def write_yolo(folder: Path) -> None:
    make_shapes(folder, train=2, val=1, labels="yolo")


def read_tool(kind: str) -> Callable[[Path], object]:
    return lambda folder: (format_of(folder), read_export(folder, cast(Format, kind), None))


def write_estimate(folder: Path) -> None:
    template = small()
    entries = space_entries(template, template.widths, oa=False)
    target = declared("cpu-i7")
    write_table(estimated_table(target, (64, 96), entries, Efficiencies.load()), folder)
    for suffix in (".csv", ".json"):
        (found,) = folder.glob(f"*{suffix}")
        found.rename(folder / f"table{suffix}")


def write_text(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8") and None


LADDER = json.dumps(
    {"format": 1, "rungs": [{"bundle": f"bundle-{x}", "target_fps": x} for x in (60, 30)]}
)

FLEET = """
[camera]
device = "cpu"
runtime = "onnxruntime"
precision = "f32"
threads = 1
target_fps = 24
input_size = "448x448"

[box]
device = "cpu-i7"
max_latency_ms = 40.0
at = "p95"
"""
DEVICE = """
title = "a box"
kind = "cpu"
pattern = "Box"
runtime = "onnxruntime"
precision = "f32"

[figures]
source = "none"
peak_gflops = { f32 = 100.0 }
bandwidth_gbs = 10.0
cache_mb = 1.0
cache_gbs = 20.0
launch_us = 5.0
cores = 2

[[published]]
network = "n"
ms = 1.0
runtime = "torch"
precision = "f32"
source = "none"
gmacs = 1.0
maps_m = 1.0
weights_m = 1.0
nodes = 1
"""


def write_results(folder: Path) -> None:
    """Write the results of a probe as it does; the times are made up."""
    template = small()
    space = SearchSpace(template=template, positions=(1, 1, 1, 1))
    entries = sorted(template.entries().values())[:4]
    timing = {"ms": 1.0, "min_ms": 0.9, "p95_ms": 1.1, "spread": 0.1, "n": 12, "interval": 0.02}
    measured = {
        "references": dict.fromkeys(REFERENCES, timing),
        "rounds": [[0.1, dict.fromkeys(REFERENCES, 1.0)]] * 3,
        "disturbance": {"other_load": 0.0, "stolen": 0.0, "throttled": 0, "slowdown": 0.0},
        "load_s": 0.1,
        "time_s": 0.1,
        "date": "2026-11-30",
    }
    setting = Setting(runtime="onnxruntime", precision="f32", threads=1).to_json()
    plan = {
        "device": "cpu", "setting": setting, "size": [64, 96], "forms": FORMS_VERSION,
        "entries": [[asdict(entry) for entry in entries]], "networks": [template.to_dict()],
        "checks": {}, "space": space.to_dict(),
    }  # fmt: skip
    head = {
        "results_format": RESULTS_FORMAT, "pack": "p", "probe": probe_version(), "plan": plan,
        "setting": setting, "gpus": [], "runtime_version": "1", "executed": "f32",
        "machine": {"model": "m", "cores": 1, "quota": None, "governor": "unknown", "flags": [],
                    "memory_mb": 1},
    }  # fmt: skip
    keys = {probe.key for entry in entries for probe in terms(entry)}
    batch = {"batch": 0, "timings": dict.fromkeys(sorted(keys), timing), **measured}
    network = {"network": "network0", "timing": timing, "peak_mb": 50.0, **measured}
    lines = "".join(json.dumps(record) + "\n" for record in (head, batch, network))
    (folder / "results.jsonl").write_text(lines, encoding="utf-8")


def write_video(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    writer = cv2.VideoWriter(str(folder / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (32, 24))
    for shift in range(6):
        writer.write(np.roll(pixels, shift, 1))
    writer.release()


def read_video(folder: Path) -> object:
    """Read the frames as `heat detect` does: at most a hundred, what cannot be read is counted."""
    source = Source(str(folder / "a.avi"))
    try:
        frames = 0
        while frames < 100 and source.read() is not None:
            frames += 1
        return frames, source.missing(frames), is_animated(folder / "a.avi")
    finally:
        source.close()


def write_pack(folder: Path) -> None:
    model = Model(b"no model", {"x": ((1, 2), "float32")})
    manifest = {
        "probe": "p", "pack": "q", "plan": {}, "inputs": {"k": model.inputs},
        "setting": Setting(runtime="onnxruntime", precision="f32", threads=1).to_json(),
    }  # fmt: skip
    with zipfile.ZipFile(folder / "pack.pyz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", json.dumps(manifest))
        archive.writestr("models/k.onnx", model.onnx)


def read_pack(folder: Path) -> object:
    path = folder / "pack.pyz"
    check_replaceable(path, "--pack", is_pack)
    pack = Pack(path)
    return pack.setting, pack.model("k")


def write_thinned(folder: Path) -> None:
    out = ("--out", str(folder))
    size = ("--space", "micro", "--input-size", "64x96")
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        main(["profile", "--device", "cpu-i7", "--estimate", *size, *out])
        main(["thin", "--target-fps", "50", "--trust-table", *out])


def read_thinned(folder: Path) -> object:
    workspace = Workspace(folder)
    thinned = find_thinned(workspace)
    return workspace.stages(), thinned, load_network(workspace)


def read_run(folder: Path) -> object:
    workspace = Workspace(folder)
    return workspace.stages(), load_supernet(workspace)


READERS: Mapping[str, Reader] = {
    "coco": Reader(
        lambda folder: load_split(folder, "train"), write_coco,
        ("annotations/instances_train.json",),
    ),
    "yolo": Reader(
        lambda folder: load_split(folder, "train"), write_yolo,
        ("data.yaml", "labels/train/train_00000.txt"),
    ),
    **{
        kind: Reader(read_tool(kind), write, (file,))
        for kind, write, file in (
            ("voc", write_voc_export, "Annotations/a.xml"),
            ("cvat", write_cvat_export, "annotations.xml"),
            ("label-studio", write_tasks, "project-1.json"),
        )
    },
    **{
        f"image {suffix}": Reader(
            lambda folder, suffix=suffix: read_image(folder / f"image.{suffix}"),
            write_image(suffix), (f"image.{suffix}",),
        )
        for suffix in ("jpg", "png", "bmp", "tiff", "webp")
    },
    "architecture": Reader(
        lambda folder: read_architecture(
            (folder / "architecture.json").read_text("utf-8", "replace"), "architecture.json"
        ),
        lambda folder: small().save(folder / "architecture.json"), ("architecture.json",),
    ),
    "table": Reader(
        lambda folder: read_table(folder / "table.csv"), write_estimate,
        ("table.csv", "table.json"),
    ),
    "checkpoint": Reader(
        lambda folder: (
            read_info(folder / "weights.safetensors"), read_source(folder / "weights.safetensors")
        ),
        write_checkpoint, ("weights.safetensors",),
    ),
    "card": Reader(read_card, write_text("card.json", json.dumps(CARD)), ("card.json",)),
    "fleet": Reader(
        lambda folder: read_fleet(folder / "fleet.toml"), write_text("fleet.toml", FLEET),
        ("fleet.toml",),
    ),
    "device": Reader(
        lambda folder: load_device(folder / "box.toml"), write_text("box.toml", DEVICE),
        ("box.toml",),
    ),
    "probe results": Reader(
        lambda folder: table_from_results(folder / "results.jsonl"),
        write_results, ("results.jsonl",),
    ),
    "teacher": Reader(
        read_teacher, write_teacher, ("model.onnx", "preprocessor_config.json")
    ),
    "encoder": Reader(
        read_encoder, lambda folder: write_encoder(folder / "model.onnx") and None,
        ("model.onnx",),
    ),
    "teacher's boxes": Reader(read_seen, write_seen, ("teacher.jsonl",)),
    "features": Reader(read_features, write_features, ("cache.json", "broken.txt")),
    "pack": Reader(read_pack, write_pack, ("pack.pyz",)),
    "video": Reader(read_video, write_video, ("a.avi",)),
    "model": Reader(read_model, write_model, ("model.onnx",)),
    "elastic": Reader(
        read_elastic, write_elastic, ("elastic/weights.safetensors", "elastic/plan.json")
    ),
    "ladder": Reader(read_ladder, write_text("ladder.json", LADDER), ("ladder.json",)),
    "bundle": Reader(read_bundle, write_bundle, ("bundle/card.json",)),
    "thinned": Reader(read_thinned, write_thinned, ("run.json", "thin/architecture.json")),
    "run": Reader(
        read_run,
        write_text("run.json", json.dumps({"format": 1, "stages": {"profile": {"seconds": 1}}})),
        ("run.json",),
    ),
}  # fmt: skip
"""Every reader of files that a user or another machine hands over, by name."""
