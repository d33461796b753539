"""Training with a teacher: its maps, or its boxes where nothing is labelled."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from deploy.teachers.detector import Seen, TeacherFacts, load_teacher
from deploy.teachers.seen_file import SeenFile
from heat.stages.lesson import _once
from supernet.checkpoint import CheckpointInfo, read_info, save_checkpoint
from supernet.data.augment import AugmentConfig, augment, mosaic
from supernet.data.coco import load_split
from supernet.data.detection_set import Crowd, DetectionSet
from supernet.data.ground_truth import GroundTruth
from supernet.data.labelled_image import load_image
from supernet.data.shapes import make_shapes
from supernet.data.soft_labels import with_soft_labels
from supernet.errors import UserError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.supernet import SearchConfig, SearchSpace, Supernet
from supernet.train.aligned import training_loss
from supernet.train.distill import (
    DistilledTask,
    Taught,
    class_order,
    distillation,
    why_not_dense,
)
from supernet.train.recipes import TrainConfig
from supernet.train.set_loss import DETR, SAM_DETR, set_loss
from tests.command_line import fails, run
from tests.short_training import first_images
from tests.toy_teachers import nms_rows, write_onnx

SIZE = (64, 96)
TINY = [
    "--input-size",
    "64x96",
    "--epochs",
    1,
    "--batch-size",
    4,
    "--eval-every",
    0,
    "--precision",
    "f32",
]


@pytest.fixture
def small(unit: Architecture) -> Architecture:
    return unit.with_(input_size=SIZE, num_classes=4, output_stride=16, blocks=("R", "S", "R", "W"))


@pytest.fixture
def data(shapes: Path) -> DetectionSet:
    return first_images(shapes, 8)


def maps(network: Detector, seed: int = 0) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(seed)
    images = torch.randint(0, 256, (2, *SIZE, 3), dtype=torch.uint8)
    with torch.no_grad():
        return network(images)  # type: ignore[no-any-return]


def test_a_teacher_of_itself_teaches_nothing(small: Architecture) -> None:
    network = Detector(small).eval()
    own = maps(network)
    theirs = [part.detach().clone() for part in own]
    theirs[0] += 6  # sure of some boxes
    equal = distillation(own, [own[0].detach(), theirs[1]], network.decode)
    assert float(equal["teacher_classes"]) == 0
    assert float(equal["teacher_boxes"]) == pytest.approx(0, abs=1e-5)
    apart = distillation(own, theirs, network.decode)
    assert float(apart["teacher_classes"]) > 0
    assert float(apart["teacher_boxes"]) == pytest.approx(0, abs=1e-5)
    theirs[1] = theirs[1] + 0.5
    assert float(distillation(own, theirs, network.decode)["teacher_boxes"]) > 0.01


def test_only_the_student_learns(small: Architecture, data: DetectionSet) -> None:
    torch.manual_seed(0)
    student, teacher = Detector(small).train(), Detector(small)
    names = tuple(reversed(data.names))
    task = DistilledTask(student, data, teacher, names)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    outputs = task.model(torch.randint(0, 256, (2, *SIZE, 3), dtype=torch.uint8))
    assert len(outputs) == 4 and not outputs[2].requires_grad and not teacher.training
    targets = [GroundTruth(torch.tensor([[8.0, 8, 40, 40]]), torch.tensor([1]))] * 2
    terms = task.loss(outputs, targets, TrainConfig())
    assert list(terms) == ["classes", "boxes", "teacher_classes", "teacher_boxes"]
    torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
    taught = Taught(student, teacher, [3, 2, 1, 0])
    again = taught(torch.zeros(1, *SIZE, 3, dtype=torch.uint8))
    plain = teacher(torch.zeros(1, *SIZE, 3, dtype=torch.uint8))
    assert torch.equal(again[2][:, :, 0], plain[0][:, :, 3])  # classes by name


def test_which_maps_are_on_one_grid(small: Architecture, data: DetectionSet) -> None:
    assert why_not_dense(small, small.with_(widths=(64, 64, 64, 64), input_size=(128, 128))) is None
    assert why_not_dense(small.with_(head="one-to-one"), small) is None
    for other in (
        small.with_(output_stride=32),
        small.with_(num_classes=5),
        small.with_(anchor_sizes=(32, 64)),
        small.with_(head="one-to-one"),
    ):
        assert why_not_dense(small, other) is not None
    with pytest.raises(UserError, match="the teacher's maps are not the network's: other classes"):
        DistilledTask(Detector(small), data, Detector(small), ("a", "b", "c", "d"))
    student = Detector(small.with_(head="one-to-one")).train()
    task = DistilledTask(student, data, Detector(small), data.names)
    outputs = task.model(torch.zeros(2, *SIZE, 3, dtype=torch.uint8))
    targets = [GroundTruth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))] * 2
    task.loss(outputs, targets, TrainConfig())["teacher_classes"].backward()  # type: ignore[no-untyped-call]
    assert student.many is not None
    grads = {name: p.grad for name, p in student.named_parameters() if "cls.bias" in name}
    assert grads["many.cls.bias"] is not None and grads["units.head.cls.bias"] is None


def test_labels_hold_and_other_boxes_are_weighted(data: DetectionSet) -> None:
    record = data.records[0]
    box = record.boxes_xyxy[0]
    free = np.array([0, 0, 6, 6], np.float32)
    found = (
        np.stack([box + 1, free, free + 8, free + 16]),
        np.array([0.9, 0.6, 0.2, 0.8], np.float32),
        np.array([1, 1, 1, 0]),
    )
    limits = np.array([0.3, 0.3], np.float32)
    taught, added = with_soft_labels(data, {0: found}, {1: 2}, limits)
    new = taught.records[0]
    assert added == 1 and np.array_equal(new.boxes_xyxy[-1], free) and new.labels[-1] == 2
    assert new.weights is not None and new.weights[-1] == np.float32(0.6)
    assert new.weights[:-1].tolist() == [1.0] * len(record.labels)
    assert taught.digest != data.digest
    assert taught.records[1].weights is not None and taught.records[1].weights.all()


def test_what_lies_in_a_crowd_is_labelled(data: DetectionSet) -> None:
    """A crowd region is much larger than each of its objects."""
    record = replace(data.records[0], crowds=(Crowd((0.0, 0.0, 90.0, 90.0), 0, 8100.0),))
    bare = replace(
        record, boxes_xyxy=record.boxes_xyxy[:0], labels=record.labels[:0], areas_px=None
    )
    boxes = np.array([[10.0, 10, 20, 20], [85, 10, 105, 30]])
    found = boxes, np.array([0.9, 0.8]), np.array([0, 0])
    limits = np.array([0.5], np.float32)
    taught, added = with_soft_labels(data.of([bare]), {0: found}, {0: 0}, limits)
    assert added == 1 and taught.records[0].boxes_xyxy.tolist() == [[85, 10, 105, 30]]


def test_classes_match_by_name_where_that_says_which() -> None:
    assert class_order(("b", "a"), ("a", "b")) == [1, 0]
    assert class_order(("a", "b", "b"), ("a", "b", "b")) == [0, 1, 2]
    assert class_order(("a", "b", "b"), ("b", "a", "b")) is None
    assert class_order(("a", "b"), ("a", "c")) is None


def test_weights_follow_their_boxes(data: DetectionSet) -> None:
    """Each object's weight follows from its class, in whatever order augmentation leaves them."""
    images = []
    for record in data.records[:4]:
        weights = (record.labels + 1).astype(np.float32) / 4
        images.append(load_image(replace(record, weights=weights)))
    rng = np.random.default_rng(0)
    config = AugmentConfig(crop=0.5, flip_vertical=0.5)
    for _ in range(5):
        for shown in (augment(images[0], SIZE, config, rng), mosaic(images, SIZE, config, rng)):
            assert shown.weights is not None
            assert shown.weights.tolist() == ((shown.labels + 1) / 4).tolist()


@pytest.mark.parametrize("assign", ["uniform", "aligned"])
def test_the_loss_of_weighted_objects(small: Architecture, assign: str) -> None:
    """A weight of 1 is none; of two objects the one of weight 0 has no box to learn."""
    network = Detector(small).eval()
    outputs = maps(network)
    boxes = torch.tensor([[4.0, 4, 36, 36], [50, 20, 90, 60]])
    labels = torch.tensor([1, 2])

    def loss(weights: torch.Tensor | None, rows: slice = slice(None)) -> list[float]:
        target = GroundTruth(boxes[rows], labels[rows], weights)
        found = training_loss(outputs, [target] * 2, network.decode, assign)  # type: ignore[arg-type]
        return [float(term) for term in found.terms.values()]

    assert loss(torch.ones(2)) == pytest.approx(loss(None), rel=1e-6)
    assert loss(torch.tensor([1.0, 0.0]))[1] == pytest.approx(loss(None, slice(1))[1], rel=1e-5)
    assert loss(torch.tensor([1.0, 0.5])) != pytest.approx(loss(None))


@pytest.mark.parametrize("weights", [DETR, SAM_DETR])
def test_the_set_loss_of_weighted_objects(weights: object) -> None:
    torch.manual_seed(0)
    logits, boxes = torch.randn(1, 1, 6, 4), torch.rand(1, 1, 6, 4) * 0.5 + 0.2
    objects = torch.tensor([[4.0, 4, 36, 36], [50, 20, 90, 60]])

    def loss(share: torch.Tensor | None) -> list[float]:
        target = GroundTruth(objects, torch.tensor([1, 2]), share)
        return [float(v) for v in set_loss(logits, boxes, [target], SIZE, weights).values()]  # type: ignore[arg-type]

    assert loss(torch.ones(2)) == pytest.approx(loss(None))
    assert loss(torch.tensor([1.0, 0.2])) != pytest.approx(loss(None))


def test_a_file_of_detections_goes_on(tmp_path: Path) -> None:
    facts = TeacherFacts("big", "ONNX", ("a", "b"), "1234", {})
    path = tmp_path / "teacher.jsonl"
    boxes = np.array([[1, 2, 3, 4.126]], np.float32)
    seen = Seen((10, 20), (boxes, np.array([0.5], np.float32), np.array([1])))
    with SeenFile(path, facts, option="x") as file:
        kept = file.add("one", seen)
        file.add("two", seen)
    path.write_bytes(path.read_bytes()[:-20])  # killed while it wrote
    with SeenFile(path, facts, option="x") as file:
        again = file.find("one", (10, 20))
        assert again is not None and again.found[0].tolist() == kept.found[0].tolist()
        assert again.found[0][0, 3] == np.float32(4.13)
        assert file.find("one", (20, 10)) is None and file.find("two") is None
        file.add("two", seen)
    with SeenFile(path, facts, option="x") as file:
        assert file.find("two") is not None
    other = replace(facts, digest="5678")
    with pytest.raises(UserError, match=r"holds what another teacher found \(big, .*: another --o"):
        SeenFile(path, other, option="another --out")
    SeenFile(path, other, option="x", replace=True)
    assert not path.exists()
    path.write_text("mine\n")
    with pytest.raises(UserError, match="is no file of a teacher's detections"):
        SeenFile(path, facts, option="x")


@pytest.mark.usefixtures("looking_here")
def test_train_with_a_teacher(tmp_path: Path, small: Architecture) -> None:
    """Its maps where it is HEAT's, its boxes where it is an ONNX file; resumed with neither."""
    shapes = tmp_path / "shapes"
    make_shapes(shapes, train=4, val=1)
    file, own = tmp_path / "small.json", tmp_path / "teacher" / "weights.safetensors"
    small.save(file)
    names = load_split(shapes, "train").names
    info = CheckpointInfo(
        kind="detector", description=small.to_json(), names=names, epoch=1, epochs=1
    )
    save_checkpoint(own, Detector(small).state_dict(), info)
    common = ["train", "--data", shapes, "--architecture", file, *TINY]
    out = ["--out", tmp_path / "student"]
    code, result, errors = run(*common, *out, "--teacher", own.parent)
    assert code == 0 and result["teacher"]["learnt"] == "maps", errors
    history = read_info(Path(result["checkpoint"])).history[0]
    assert history["teacher_classes"] > 0  # type: ignore[typeddict-item]
    assert "other weights to start from" in fails(2, *common, *out)
    itself = ["--teacher", tmp_path / "student"]
    assert "training replaces it, give another --out" in fails(2, *common, *out, *itself)

    rows = nms_rows([0, 0, 10, 10, 0.9, 1], [60, 40, 80, 60, 0.2, 1])
    path = tmp_path / "m.onnx"
    write_onnx(path, {"out": rows}, metadata={"names": "['cow', 'disc', 'ring']"})
    more = tmp_path / "more"
    more.mkdir()
    for name in ("a", "b"):
        cv2.imwrite(str(more / f"{name}.png"), np.full((64, 96, 3), ord(name), np.uint8))
    asked = [*common, *out, "--teacher", path, "--unlabelled", more]
    line = fails(2, *asked)
    assert "other images or annotations" in line and "other weights to start from" in line
    code, result, errors = run(*asked, "--restart")
    found = result["teacher"]
    assert code == 0 and found["learnt"] == "boxes" and found["unlabelled"] == 2, errors
    assert 2 <= found["boxes"] <= 6 and found["classes_left_out"] == ["cow"]
    assert "teacher's classes that the data does not have: cow" in errors
    assert run(*asked)[0] == 0  # finished, and kept
    assert "--teacher-norm: of which teacher?" in fails(2, *common, "--teacher-norm", "raw")


def test_a_supernet_teaches(small: Architecture, data: DetectionSet, tmp_path: Path) -> None:
    """At the temperature of its last epoch, without noise, on images of the student's size."""
    space = SearchSpace(template=small.with_(input_size=(96, 96)), positions=(1, 1, 1, 1))
    supernet = Supernet(space)
    path = tmp_path / "weights.safetensors"
    info = CheckpointInfo(
        kind="supernet", description=space.to_json(), names=data.names, epoch=3, epochs=3
    )
    save_checkpoint(path, supernet.state_dict(), info)
    teacher, names, _ = load_teacher(path, SIZE)
    assert isinstance(teacher, Supernet) and teacher.architecture.input_size == SIZE
    assert all(mixture.tau == SearchConfig().tau_end for _, mixture in teacher.mixtures())
    task = DistilledTask(Detector(small), data, teacher, names)
    images = torch.zeros(1, *SIZE, 3, dtype=torch.uint8)
    assert torch.equal(task.model(images)[2], task.model(images)[2])


def test_a_class_that_the_data_does_not_have_hides_no_box() -> None:
    """A truck at 0.8 suppressed the car at 0.6, and was then left out itself."""
    boxes = np.array([[10, 10, 60, 50], [12, 10, 60, 50]], np.float32)
    found = boxes, np.array([0.8, 0.6], np.float32), np.array([1, 0])
    _, scores, labels = _once(found, {0: 0}, np.array([0.3, 0.3], np.float32))
    assert scores.tolist() == [np.float32(0.6)] and labels.tolist() == [0]


def test_an_image_of_two_sizes_is_found_as_it_was_asked_for(tmp_path: Path) -> None:
    """Annotated on its stored pixels in one set, and turned by EXIF elsewhere."""
    facts = TeacherFacts("big", "ONNX", ("a",), "1234", {})
    none = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    with SeenFile(tmp_path / "t.jsonl", facts, option="x") as file:
        file.add("k", Seen((64, 40), none))
        file.add("k", Seen((40, 64), none), stated=True)
    with SeenFile(tmp_path / "t.jsonl", facts, option="x") as file:
        for asked, size in ((None, (64, 40)), ((40, 64), (40, 64)), ((64, 40), (64, 40))):
            found = file.find("k", asked)
            assert found is not None and found.image_hw == size
        assert file.find("k", (1, 1)) is None
