"""Files of models as a fuzzer mutates them, and how they are read."""

import contextlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from deploy.edge.detect import Bundle
from deploy.edge.runtimes import open_session
from deploy.export import export_bundle
from deploy.feeds import described, inputs_of, refuse_open_ranks
from deploy.form import Form
from deploy.teachers.asked import Asked
from deploy.teachers.detector import Seen, Teacher, TeacherFacts, ToSee
from deploy.teachers.encoder import EncoderRequest
from deploy.teachers.onnx_encoder import OnnxEncoder
from deploy.teachers.seen_file import SeenFile
from heat.stages.elastic import read_plan
from heat.thinning.moves import State
from heat.thinning.nested import members_of
from heat.thinning.source import elastic_members, load_elastic
from heat.workspace import Workspace
from supernet.checkpoint import CheckpointInfo, save_checkpoint
from supernet.data.unlabelled import UnlabelledImages
from supernet.graph.writer import GraphWriter
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.supernet import SearchSpace, Supernet
from supernet.train.feature_cache import FeatureCache
from supernet.train.feature_key import CacheKey
from tests.toy_teachers import nms_rows, write_onnx


def small() -> Architecture:
    return Architecture(
        widths=(32, 32, 32, 32), blocks=("R", "S", "W", "R"), t1_blocks=1, t2_blocks=1,
        num_classes=4, input_size=(64, 96),
    )  # fmt: skip


def write_image(suffix: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        ok, data = cv2.imencode(f".{suffix}", pixels)
        assert ok
        (folder / f"image.{suffix}").write_bytes(data.tobytes())

    return write


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
