"""Readers of files that a user or another machine hands over, and a valid file for each."""

import contextlib
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch

from deploy.edge.capture import Source, is_animated
from deploy.edge.detect import Bundle, read_card
from deploy.edge.ladder import read_ladder
from deploy.edge.runtimes import open_session
from deploy.export import export_bundle
from deploy.feeds import described, inputs_of, refuse_open_ranks
from deploy.form import Form
from deploy.teachers.asked import Asked
from deploy.teachers.detector import Seen, Teacher, TeacherFacts, ToSee
from deploy.teachers.encoder import EncoderRequest
from deploy.teachers.onnx_encoder import OnnxEncoder
from deploy.teachers.seen_file import SeenFile
from heat.cli import main
from heat.commands.fleet_file import read_fleet
from heat.stages.elastic import read_plan
from heat.stages.network import load_network
from heat.thinning.moves import State
from heat.thinning.nested import members_of
from heat.thinning.source import elastic_members, load_elastic, load_supernet
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
from supernet.checkpoint import CheckpointInfo, read_info, save_checkpoint
from supernet.data.coco import load_split
from supernet.data.format_names import Format
from supernet.data.formats import format_of, read_export
from supernet.data.shapes import make_shapes
from supernet.data.unlabelled import UnlabelledImages
from supernet.graph.style import FORMS_VERSION
from supernet.graph.writer import GraphWriter
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.supernet import SearchSpace, Supernet
from supernet.letterbox import read_image
from supernet.network import read_architecture
from supernet.train.feature_cache import FeatureCache
from supernet.train.feature_key import CacheKey
from supernet.train.transfer import read_source
from tests.tool_exports import write_cvat_export, write_tasks, write_voc_export
from tests.toy_encoders import write_encoder
from tests.toy_teachers import nms_rows, write_onnx


@dataclass(frozen=True)
class Reader:
    """A reader and the valid files that it is fuzzed with."""

    read: Callable[[Path], object]
    """Given the folder of a case."""
    write: Callable[[Path], None]
    """Writes a valid case into an empty folder."""
    files: tuple[str, ...]
    """Which of its files are mutated."""


def small() -> Architecture:
    return Architecture(
        widths=(32, 32, 32, 32), blocks=("R", "S", "W", "R"), t1_blocks=1, t2_blocks=1,
        num_classes=4, input_size=(64, 96),
    )  # fmt: skip


def write_coco(folder: Path) -> None:
    make_shapes(folder, train=2, val=1)


def write_yolo(folder: Path) -> None:
    make_shapes(folder, train=2, val=1, labels="yolo")


def read_tool(kind: str) -> Callable[[Path], object]:
    return lambda folder: (format_of(folder), read_export(folder, cast(Format, kind), None))


def write_image(suffix: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        ok, data = cv2.imencode(f".{suffix}", pixels)
        assert ok
        (folder / f"image.{suffix}").write_bytes(data.tobytes())

    return write


def write_estimate(folder: Path) -> None:
    template = small()
    entries = space_entries(template, template.widths, oa=False)
    target = declared("cpu-i7")
    write_table(estimated_table(target, (64, 96), entries, Efficiencies.load()), folder)
    for suffix in (".csv", ".json"):
        (found,) = folder.glob(f"*{suffix}")
        found.rename(folder / f"table{suffix}")


def save(path: Path, network: Detector | Supernet, **facts: object) -> None:
    """Write a checkpoint as a training does."""
    detector = isinstance(network, Detector)
    info = CheckpointInfo(
        kind="detector" if detector else "supernet",
        description=(network.architecture if detector else network.space).to_json(),
        names=("a", "b", "c", "d"),
        epoch=1,
        epochs=1,
        facts=facts,
    )
    save_checkpoint(path, network.state_dict(), info)


def write_checkpoint(folder: Path) -> None:
    save(folder / "weights.safetensors", Detector(small()), history=[])


def write_elastic(folder: Path) -> None:
    workspace = Workspace(folder)
    workspace.elastic.mkdir(exist_ok=True)
    supernet = Supernet(SearchSpace(template=small(), positions=(1, 1, 1, 1)))
    logits = supernet.logits()
    members = members_of([State.full(supernet.space)], supernet.space, logits)
    plan = {"supernet": "0" * 64, "networks": [member.to_dict() for member in members]}
    save(workspace.elastic / "weights.safetensors", supernet, elastic=plan)
    asked = plan | {"asked": plan["networks"]}
    (workspace.elastic / "plan.json").write_text(json.dumps(asked))


def read_elastic(folder: Path) -> object:
    workspace = Workspace(folder)
    supernet = load_elastic(workspace)
    if supernet is None:
        return None
    trained = elastic_members(workspace.elastic / "weights.safetensors", supernet.space.template)
    return trained, read_plan(workspace.elastic / "plan.json", supernet.space, "0" * 64)


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


CARD = {
    "format": 1, "names": ["a"], "runtime": "onnxruntime", "precision": "f32", "threads": 1,
    "model": "model.onnx", "input": {"height": 64, "width": 96}, "files": {},
}  # fmt: skip


def write_bundle(folder: Path) -> None:
    torch.manual_seed(0)
    image = np.zeros((64, 96, 3), np.uint8)
    with contextlib.redirect_stderr(io.StringIO()):
        export_bundle(
            Detector(small()).eval(), folder / "bundle", Form(format="onnx"),
            names=["a", "b", "c", "d"], images=[image],
            facts={"trained": False, "target_fps": None},
        )  # fmt: skip


def read_bundle(folder: Path) -> object:
    with Bundle(folder / "bundle") as bundle:
        return bundle.detect(np.zeros((40, 60, 3), np.uint8))


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


TEACHER = {"names": "{0: 'a', 1: 'b'}", "imgsz": "[64, 96]"}


def write_teacher(folder: Path) -> None:
    """Write an ONNX detector, and the files that lie beside it."""
    rows = nms_rows([1, 1, 20, 20, 0.9, 1])
    write_onnx(folder / "model.onnx", {"out": rows}, shape=(1, 3, "h", "w"), metadata=TEACHER)
    values = {"do_rescale": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2],
              "size": {"height": 64, "width": 96}}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    write_image("jpg")(folder)


def read_teacher(folder: Path) -> object:
    teacher = Teacher(Asked(teacher=folder / "model.onnx"))
    return teacher.facts(), teacher.see(ToSee(folder / "image.jpg"))


def read_encoder(folder: Path) -> object:
    encoder = OnnxEncoder(EncoderRequest(source=str(folder / "model.onnx")))
    height, width = encoder.facts().input_hw
    return encoder.features(np.zeros((1, height, width, 3), np.uint8))


SEEN_BY = TeacherFacts("a", "b", ("c",), "d", {})


def write_seen(folder: Path) -> None:
    boxes = np.array([[1, 2, 3, 4]], np.float32)
    found = (boxes, np.array([0.5], np.float32), np.array([0]))
    with SeenFile(folder / "teacher.jsonl", SEEN_BY, option="another --out") as file:
        for key in ("first", "second"):
            file.add(key, Seen((64, 96), found))


def read_seen(folder: Path) -> object:
    with SeenFile(folder / "teacher.jsonl", SEEN_BY, option="another --out") as file:
        return file.find("first", (64, 96)), file.find("second")


FEATURES = CacheKey(
    teacher="a", digest="b", input_hw=(8, 8), normalisation="none", maps=(("c", 3, 2, 2),),
    images="d", num_images=3, views=1,
)  # fmt: skip


def features_in(folder: Path) -> FeatureCache:
    images = UnlabelledImages((folder,), tuple(folder / f"{name}.jpg" for name in "abc"))
    return FeatureCache(folder, FEATURES, images)


def write_features(folder: Path) -> None:
    class Zeros:
        def stream(self, images: Iterable[Any]) -> Iterator[list[Any]]:
            for batch in images:
                yield [np.zeros((len(batch), 3, 2, 2), np.float16)]

    cache = features_in(folder)
    pixels = np.zeros((8, 8, 3), np.uint8)
    a, b, c = cache.images.paths
    cache.fill(Zeros(), ((a, pixels), (b, None), (c, pixels)))


def read_features(folder: Path) -> object:
    cache = features_in(folder).check(restart=False)
    return cache.scales if cache.complete else None, cache.usable


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


def write_model(folder: Path) -> None:
    graph = GraphWriter()
    x = graph.input("x", (1, 3, 8, 8))
    weights = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    y = graph.unary("Sigmoid", graph.binary("Mul", x, graph.const(weights)))
    model = graph.model([("y", y, "float32")])
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def read_model(folder: Path) -> object:
    """Load it and make inputs for it as the process of `heat bench` does."""
    path = folder / "model.onnx"
    with open_session("onnxruntime", path, 1) as session:
        refuse_open_ranks(session, path)
        return described(inputs_of(session))


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
