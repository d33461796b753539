"""Detectors of any origin as teachers: what is recognised, and where boxes come out."""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from deploy.edge.session import Array, Feeds
from deploy.teachers.asked import Asked
from deploy.teachers.detector import Teacher, ToSee, matched_classes, refuse_stated
from deploy.teachers.inputs import stated_fit
from deploy.teachers.onnx_digest import onnx_digest
from deploy.teachers.onnx_file import OnnxDetector
from deploy.teachers.worker import Worker
from supernet.checkpoint import CheckpointInfo, save_checkpoint
from supernet.data.evaluate import Found
from supernet.errors import HeatError, UserError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from tests.toy_teachers import logit, nms_rows, write_batched, write_onnx

NAMES = {"names": "{0: 'cat', 1: 'dog', 2: 'cow'}"}
INPUT = (64, 96)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twice the input in both directions: 128x192."""
    path = tmp_path_factory.mktemp("image") / "grey.png"
    cv2.imwrite(str(path), np.full((128, 192, 3), 255, np.uint8))
    return path


def seen(path: Path, image: Path, **asked: Any) -> Found:
    (found,) = Teacher(Asked(teacher=path, **asked)).see([ToSee(image)])
    assert found is not None
    return found.found


def detr(*, softmax: bool) -> dict[str, np.ndarray]:
    """Two queries: a dog of 0.8 at the left half, and nothing."""
    boxes = np.array([[[0.25, 0.5, 0.5, 1.0], [0.5, 0.5, 0.1, 0.1]]], np.float32)
    if softmax:
        shares = np.array([[[0.05, 0.8, 0.05, 0.1], [0.01, 0.01, 0.01, 0.97]]])
        return {"logits": np.log(shares), "pred_boxes": boxes}
    low = logit(0.01)
    logits = np.array([[[low, logit(0.8), low], [low, low, low]]])
    return {"logits": logits, "pred_boxes": boxes}


def yolo(objectness: bool = False) -> np.ndarray:
    """Rows of the same dog, seen twice, and of a cat; [1, N, 4 + K] with cxcywh in pixels."""
    rows = [
        [24, 32, 48, 64, 0.01, 0.8, 0.02],
        [25, 32, 48, 64, 0.01, 0.7, 0.02],
        [80, 16, 16, 16, 0.5, 0.1, 0.0],
        *[[50, 50, 4, 4, 0.0, 0.0, 0.0]] * 9,
    ]
    found = np.array([rows], np.float32)
    if objectness:
        found = np.insert(found, 4, 0.5, axis=2)
    return found


HALF = [0, 0, 96, 128]
"""The left half of the image, in its own pixels."""


@pytest.mark.parametrize("softmax", [True, False])
def test_detrs_outputs(tmp_path: Path, image: Path, softmax: bool) -> None:
    path = write_onnx(tmp_path / "m.onnx", detr(softmax=softmax), metadata=NAMES)
    boxes, scores, labels = seen(path, image)
    assert boxes[0].tolist() == pytest.approx(HALF) and labels[0] == 1
    assert scores[0] == pytest.approx(0.8, abs=1e-5)


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("objectness", [True, False])
def test_raw_rows_pass_suppression(
    tmp_path: Path, image: Path, transposed: bool, objectness: bool
) -> None:
    rows = yolo(objectness)
    rows = rows.transpose(0, 2, 1) if transposed else rows
    path = write_onnx(tmp_path / "m.onnx", {"output0": rows}, metadata=NAMES)
    boxes, scores, labels = seen(path, image)
    factor = 0.5 if objectness else 1.0
    assert boxes.tolist() == [pytest.approx(HALF), pytest.approx([144, 16, 176, 48])]
    assert scores.tolist() == pytest.approx([0.8 * factor, 0.5 * factor])
    assert labels.tolist() == [1, 0]


def test_rows_after_suppression_and_separate_outputs(tmp_path: Path, image: Path) -> None:
    rows = nms_rows([0, 0, 48, 64, 0.8, 1], [0, 0, 9, 9, 0.3, 2])
    one = write_onnx(tmp_path / "one.onnx", {"out": rows}, metadata=NAMES)
    separate = {
        "labels": rows[..., 5].astype(np.int64), "boxes": rows[..., :4], "scores": rows[..., 4]
    }  # fmt: skip
    three = write_onnx(tmp_path / "three.onnx", separate, metadata=NAMES, sizes=True)
    for path in (one, three):
        boxes, scores, labels = seen(path, image)
        assert boxes[0].tolist() == HALF and labels.tolist() == [1, 2]
        assert scores.tolist() == pytest.approx([0.8, 0.3])


def test_what_a_file_does_not_say_comes_from_beside_it(tmp_path: Path, image: Path) -> None:
    """Names and size of an open input from the files that Optimum writes; uint8, channels last."""
    path = write_onnx(
        tmp_path / "m.onnx", {"out": nms_rows([0, 0, 48, 64, 0.8, 1])},
        shape=(1, "h", "w", 3), dtype=TensorProto.UINT8,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"m\.onnx does not name its classes: --teacher-names"):
        Teacher(Asked(teacher=path))
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"1": "b", "0": "a"}}))
    with pytest.raises(UserError, match=r"leaves height and width open: --teacher-size HxW"):
        Teacher(Asked(teacher=path))
    sizes = {"size": {"height": 64, "width": 96}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(sizes))
    with pytest.raises(UserError, match="may be nms or yolo: give --teacher-format"):
        Teacher(Asked(teacher=path))  # two classes
    teacher = Teacher(Asked(teacher=path, teacher_format="nms"))
    assert teacher.facts().names == ("a", "b")
    (found,) = teacher.see([ToSee(image)])
    assert found is not None and found.image_hw == (128, 192)
    assert found.found[0].tolist() == [HALF]


@pytest.mark.parametrize("mixed", [False, True])
def test_images_of_a_batch(tmp_path: Path, mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run together where the graph gives each what it gives it alone, else one by one."""
    path = write_batched(tmp_path / "m.onnx", mixed=mixed)
    files = []
    for level in (51, 102, 204):
        files.append(ToSee(tmp_path / f"{level}.png"))
        cv2.imwrite(str(files[-1].path), np.full((128, 192, 3), level, np.uint8))
    files.insert(1, ToSee(path))  # no image
    teacher = Teacher(Asked(teacher=path))
    runs: list[int] = []
    real = OnnxDetector._execute

    def execute(self: OnnxDetector, feeds: Feeds) -> list[Array]:
        runs.append(len(feeds["image"]))
        return real(self, feeds)

    monkeypatch.setattr(OnnxDetector, "_execute", execute)
    found = teacher.see(files)
    assert runs == ([1, 1, 1] if mixed else [3])
    scores = [float(each.found[1][0]) for each in found if each is not None]
    assert found[1] is None and scores == pytest.approx([0.2, 0.4, 0.8], abs=1e-4)


def test_normalisation(tmp_path: Path) -> None:
    """A white pixel is 1 by default, as a `preprocessor_config.json` has it, or as asked."""
    white = np.full((64, 96, 3), 255, np.uint8)
    path = write_onnx(tmp_path / "m.onnx", {"out": nms_rows()}, metadata=NAMES)

    def value(**asked: Any) -> float:
        model = OnnxDetector(path, Asked(teacher=path, **asked), 1)
        return float(model.rule.prepare(white)[0].mean())

    assert value() == 1.0
    assert value(teacher_norm="raw") == 255.0 and value(teacher_norm="inception") == 1.0
    assert value(teacher_norm="imagenet") == pytest.approx(2.4398, abs=1e-3)
    stated = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    before = Teacher(Asked(teacher=path)).facts().digest
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    assert value() == pytest.approx(2.0)
    # What it finds is another's then: what was kept of it is not used.
    assert Teacher(Asked(teacher=path)).facts().digest != before


def test_a_size_of_one_number_is_the_shorter_side() -> None:
    """As older versions of transformers wrote it."""
    assert stated_fit({"size": 512, "max_size": 864}).hw((100, 200)) == (432, 864)
    assert stated_fit({"size": 512}).hw((100, 200)) == (512, 1024)


@pytest.mark.parametrize("inside", ["graph", "attribute", "branch"])
def test_a_teacher_is_known_by_its_weights_in_other_files_too(tmp_path: Path, inside: str) -> None:
    path, data = tmp_path / "m.onnx", tmp_path / "m.data"
    graph = onnx.load(write_onnx(path, {"out": nms_rows()}, metadata=NAMES))
    if inside != "graph":
        value = helper.make_node(
            "Constant", [], ["extra"], value=numpy_helper.from_array(np.arange(9.0))
        )
        if inside == "branch":
            made = helper.make_tensor_value_info("extra", TensorProto.DOUBLE, [9])
            branch = helper.make_graph([value], "branch", [], [made])
            yes = helper.make_node(
                "Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))
            )
            graph.graph.node.append(yes)
            value = helper.make_node(
                "If", ["yes"], ["extra"], then_branch=branch, else_branch=branch
            )
        graph.graph.node.append(value)
    onnx.save(
        graph, path, save_as_external_data=True, location=data.name, size_threshold=0,
        convert_attribute=inside != "graph",
    )  # fmt: skip
    before = onnx_digest(path)
    known = Teacher(Asked(teacher=path)).facts().digest if inside == "graph" else None
    values = bytearray(data.read_bytes())
    values[-1] ^= 1
    data.write_bytes(values)
    assert onnx_digest(path) != before
    if known is not None:
        assert Teacher(Asked(teacher=path)).facts().digest != known
    data.unlink()
    with pytest.raises(HeatError, match=r"needs .*m\.data \(No such file.*copy it there"):
        Teacher(Asked(teacher=path))


@pytest.mark.parametrize(
    ("rows", "asked", "message"),
    [
        (np.zeros((1, 9, 12)), {}, "none of the known outputs for 3 classes"),
        (nms_rows([0, 0, 9, 9, np.nan, 0]), {}, "gives NaN or infinity"),
        (nms_rows([0, 0, 9, 9, 0.9, 7]), {}, "finds class 7, its names are 3"),
        (nms_rows(), {"teacher_format": "yolo"}, "yolo of 3 classes has 7 columns"),
        (nms_rows(), {"teacher_format": "detr-sigmoid"}, r"no logits \[1, Q, 3\] and boxes"),
        (nms_rows(), {"teacher_format": "boxes"}, "no boxes, scores and labels"),
        (nms_rows(), {"teacher_size": "32x32"}, "takes 64x96"),
        (nms_rows(), {"teacher_size": "big"}, "--teacher-size big: HxW is needed"),
    ],
)
def test_a_teacher_that_cannot_be_read(
    tmp_path: Path, rows: np.ndarray, asked: dict[str, Any], message: str
) -> None:
    path = write_onnx(tmp_path / "m.onnx", {"out": rows}, metadata=NAMES)
    with pytest.raises(UserError, match=message):
        Teacher(Asked(teacher=path, **asked))


def test_what_is_no_teacher(tmp_path: Path) -> None:
    for name, text in (("no.onnx", None), ("broken.onnx", "x"), ("empty", ""), ("a.txt", "x")):
        path = tmp_path / name
        if name == "empty":
            path.mkdir()
        elif text is not None:
            path.write_text(text)
        with pytest.raises(UserError) as raised:
            Teacher(Asked(teacher=path))
        assert name in str(raised.value) and "\n" not in str(raised.value)


def test_a_checkpoint_of_heat(tmp_path: Path, unit: Architecture, image: Path) -> None:
    architecture = unit.with_(input_size=(64, 96))
    network = Detector(architecture).eval()
    info = CheckpointInfo(
        kind="detector", description=architecture.to_json(), names=("a", "b", "c"), epoch=1,
        epochs=1,
    )  # fmt: skip
    path = tmp_path / "weights.safetensors"
    save_checkpoint(path, network.state_dict(), info)
    with pytest.raises(UserError, match="--teacher-norm is for ONNX files"):
        Teacher(Asked(teacher=path, teacher_norm="none"))
    with Worker(Teacher, Asked(teacher=tmp_path), 1) as worker:
        facts = worker.ask("facts")
        assert facts.names == ("a", "b", "c") and facts.kind == "HEAT checkpoint, unit"
        both = [ToSee(image), ToSee(tmp_path / "weights.safetensors")]
        ((found, missing),) = worker.stream("see", [both])
        assert found.image_hw == (128, 192) and missing is None
    torch.nn.init.constant_(network.units["head"].cls.bias, float("nan"))  # type: ignore[union-attr, arg-type]
    save_checkpoint(path, network.state_dict(), info)
    with pytest.raises(UserError, match=r"units\.head\.cls\.bias is NaN or infinity: train"):
        Teacher(Asked(teacher=path))


def test_classes_are_matched_by_name() -> None:
    assert matched_classes(("cat", "cow", "dog"), ("dog", "cat")) == ({0: 1, 2: 0}, ["cow"])
    assert matched_classes(("a", "b", "b"), ("a", "b")) == ({0: 0}, ["b", "b"])
    with pytest.raises(UserError, match=r"\(cat, cow\) are none of dog, pig"):
        matched_classes(("cat", "cow"), ("dog", "pig"))


def test_a_folder_of_transformers(tmp_path: Path, image: Path) -> None:
    transformers = pytest.importorskip("transformers")
    backbone = transformers.RTDetrResNetConfig(
        layer_type="basic", depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 32, 64], embedding_size=8,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.RTDetrConfig(
        backbone_config=backbone, encoder_in_channels=[16, 32, 64], d_model=32, num_queries=20,
        encoder_hidden_dim=32, encoder_ffn_dim=32, decoder_in_channels=[32] * 3,
        decoder_ffn_dim=32, decoder_layers=1, id2label={0: "cat", 1: "dog"},
        label2id={"cat": 0, "dog": 1},
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.RTDetrForObjectDetection(config).eval()
    model.save_pretrained(tmp_path)
    config_of = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config_of, "dtype": "float16"}))
    with pytest.raises(UserError, match=r"no preprocessor_config\.json"):
        Teacher(Asked(teacher=tmp_path))
    processor = {"size": {"height": 64, "width": 96}, "do_normalize": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    teacher = Teacher(Asked(teacher=tmp_path))
    assert teacher.facts().names == ("cat", "dog")
    (found,) = teacher.see([ToSee(image)])
    assert found is not None
    dark = tmp_path / "dark.png"
    cv2.imwrite(str(dark), np.full((100, 200, 3), 30, np.uint8))
    several = teacher.see([ToSee(image), ToSee(dark), ToSee(image)])
    for one, file in zip(several, (image, dark, image), strict=True):
        (alone,) = teacher.see([ToSee(file)])
        assert one is not None and alone is not None
        for part, same in zip(one.found, alone.found, strict=True):
            np.testing.assert_allclose(part, same, atol=1e-3)
    gap = Path(shutil.copytree(tmp_path, tmp_path / "gap"))
    text = (gap / "config.json").read_text()
    (gap / "config.json").write_text(text.replace('"1": "dog"', '"2": "dog"'))
    with pytest.raises(UserError, match=r"id2label are no list of names without gaps: correct it"):
        Teacher(Asked(teacher=gap))
    white = torch.ones(1, 3, 64, 96)
    with torch.no_grad():
        theirs = model(white)
    best = theirs.logits.sigmoid()[0].flatten()
    boxes, scores, _ = found.found
    kept = int((best >= 0.05).sum())
    assert len(scores) == kept
    if kept:
        assert scores[0] == pytest.approx(float(best.max()), abs=1e-4)
        cx, cy, w, h = (
            theirs.pred_boxes[0][best.argmax() // 2] * torch.tensor([192, 128] * 2)
        ).tolist()
        expected = np.clip([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 0, [192, 128] * 2)
        assert boxes[0].tolist() == pytest.approx(expected.tolist(), abs=0.1)


def test_a_normalisation_that_would_be_ignored_is_refused(tmp_path: Path) -> None:
    path = write_onnx(
        tmp_path / "m.onnx", {"out": nms_rows()}, metadata=NAMES, dtype=TensorProto.UINT8
    )
    OnnxDetector(path, Asked(teacher=path), 1)
    with pytest.raises(UserError, match=r"--teacher-norm imagenet: .* takes pixels of uint8"):
        OnnxDetector(path, Asked(teacher=path, teacher_norm="imagenet"), 1)
    with pytest.raises(UserError, match=r"--teacher-norm is for ONNX files"):
        refuse_stated(Asked(teacher=tmp_path, teacher_norm="raw"))
