"""Images without labels, which the run's own averaged weights label."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import supernet.train.loop as training
import supernet.train.unlabelled_task as unlabelled_task
from supernet.boxes import Detections
from supernet.checkpoint import read_info
from supernet.data.augment import AugmentConfig, augment
from supernet.data.coco import load_split
from supernet.data.detection_set import DetectionSet
from supernet.data.ground_truth import GroundTruth
from supernet.data.labelled_image import LabelledImage
from supernet.data.shapes import make_shapes
from supernet.data.soft_labels import with_images
from supernet.data.two_views import two_views
from supernet.errors import UserError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.train.distributed import Group
from supernet.train.feed import Batches
from supernet.train.loop import run_task
from supernet.train.optimise import Averaged
from supernet.train.recipes import TrainConfig
from supernet.train.run_files import RunFiles
from supernet.train.running import Running
from supernet.train.trust import LEAST, Trust
from supernet.train.unlabelled_task import FoundTruth, UnlabelledTask
from tests.command_line import fails, run
from tests.short_training import first_images
from tests.toy_detr import SMALL

SIZE = (64, 96)
CONFIG = TrainConfig(
    epochs=2, batch_size=4, precision="f32", warmup_steps=2, augment=AugmentConfig(mosaic=0.5)
)


@pytest.fixture
def small(unit: Architecture) -> Architecture:
    return unit.with_(input_size=SIZE, num_classes=4, output_stride=16, blocks=("R", "S", "R", "W"))


@pytest.fixture
def data(shapes: Path) -> DetectionSet:
    return first_images(shapes, 6)


@pytest.fixture
def both(shapes: Path, data: DetectionSet) -> DetectionSet:
    more = load_split(shapes, "train").records[6:11]
    return with_images(data, [record.path for record in more])


def test_boxes_move_with_the_image() -> None:
    """Boxes of the weak view are in the strong one where augmentation has those of the image."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, 90, 3), dtype=np.uint8)
    boxes = np.array([[0, 0, 90, 50], [10, 5, 40, 30], [60, 20, 80, 45]], np.float32)
    image = LabelledImage(pixels, boxes, np.arange(3))
    config = AugmentConfig(flip_vertical=0.5, scale=(0.5, 2.0))
    mirrored = set()
    for seed in range(40):
        own = augment(image, SIZE, config, np.random.default_rng(seed))
        target = two_views(image, SIZE, config, np.random.default_rng(seed)).target
        moved, kept = target.moved(torch.from_numpy(boxes) * (96 / 90))
        assert kept.nonzero()[:, 0].tolist() == own.labels.tolist()
        np.testing.assert_allclose(moved.numpy(), own.boxes_xyxy, atol=1.1)  # whole pixels
        mirrored.add(tuple((target.ratio_2 < 0).tolist()))
    assert len(mirrored) == 4


def detections(*rows: tuple[float, int, float]) -> Detections:
    """Squares of 10 pixels at (x, class, score)."""
    boxes = torch.tensor([[x, 0.0, x + 10, 10] for x, _, _ in rows]).reshape(-1, 4)
    return Detections(
        boxes, torch.tensor([s for *_, s in rows]), torch.tensor([k for _, k, _ in rows]).long()
    )


def test_trust_is_how_often_detections_are_right() -> None:
    trust = Trust(2)
    truth = GroundTruth(torch.tensor([[0.0, 0, 10, 10], [50, 0, 60, 10]]), torch.tensor([0, 1]))
    found = detections((0, 0, 0.9), (1, 0, 0.85), (51, 0, 0.6), (52, 1, 0.4), (80, 1, 0.05))
    assert trust.found() == 0
    for _ in range(60):
        trust.count([found], [truth], Group())
    right = trust.right_KS > 0
    assert right[0].nonzero()[:, 0].tolist() == [18] and right[1].nonzero()[:, 0].tolist() == [8]
    wrong = trust.wrong_KS > 0  # found twice, of another class; scores below 0.1 do not count
    assert wrong[0].nonzero()[:, 0].tolist() == [12, 17] and not wrong[1].any()
    assert trust.found() == pytest.approx(1.0)
    shares = trust.shares()
    assert shares[0, 18] > 0.9 and shares[0, 12] < LEAST < shares[1, 8]
    labels = trust.labels(found)
    assert labels.labels.tolist() == [0, 1] and labels.boxes_xyxy[:, 0].tolist() == [0, 52]
    assert labels.shares[0] == shares[0, 18]
    again = Trust(2)
    again.load_state(trust.state())
    assert torch.equal(again.shares(), shares)


def test_every_batch_has_as_many_of_both() -> None:
    config = replace(CONFIG, batch_size=4)
    keys = list(Batches(9, config, range(3), Group(), 0, more=5))
    assert [len(batch) for batch in keys] == [8, 10] * 3
    others = [index - 9 for batch in keys for _, index, _ in batch if index >= 9]
    assert sorted(others[:5]) == sorted(others[5:10]) == list(range(5))
    assert keys[3:] == list(Batches(9, config, range(1, 3), Group(), 1, more=5))
    halves = [list(Batches(9, config, range(3), Group(rank, 2), 0, more=5)) for rank in (0, 1)]
    for whole, *parts in zip(keys, *halves, strict=True):
        assert sorted(whole) == sorted(key for part in parts for key in part)


def test_averaged_weights_label(
    small: Architecture, data: DetectionSet, both: DetectionSet
) -> None:
    """They, not the network's own, and only where they find enough labelled objects."""
    torch.manual_seed(0)
    network = Detector(small).train()
    average = Averaged(network, 0.9)
    task = UnlabelledTask(network, data, both)
    task.begin(average, Group())
    batch = next(task.feed(CONFIG, range(1), Group(), 0, 0))
    images, targets = task.prepare(batch, CONFIG)
    assert len(images) == 4 and all(type(target) is GroundTruth for target in targets)
    assert list(task.loss(network(images), targets, CONFIG)) == ["classes", "boxes"]
    task.trust.right_KS += 100  # every detection is right
    task.trust.objects += 1000
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(float("nan"))
    task.begin(Averaged(Detector(small), 0.9), Group())
    images, targets = task.prepare(batch, CONFIG)
    assert len(images) == len(targets) == 8 and network.training
    labels = [target for target in targets if type(target) is FoundTruth]
    assert len(labels) == 4 and all(target.boxes_xyxy.isfinite().all() for target in labels)
    torch.manual_seed(0)
    again = Detector(small).train()
    outputs = again(images)
    terms = task.loss(outputs, targets, CONFIG)
    assert list(terms) == ["classes", "boxes", "unlabelled_classes", "unlabelled_boxes"]
    with pytest.raises(UserError, match="keeps no averaged weights"):
        task.begin(Averaged(again, 0.0), Group())


def test_resumed_equals_uninterrupted(
    small: Architecture,
    data: DetectionSet,
    both: DetectionSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit-exact, killed within an epoch; the averaged weights and the counts go on."""
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)
    monkeypatch.setattr(unlabelled_task, "READY", -1.0)
    monkeypatch.setattr("supernet.train.trust.LEAST", -1.0)
    config = replace(CONFIG, batch_size=2)

    class KilledError(Exception):
        pass

    def train(folder: Path, running: Running | None = None) -> None:
        torch.manual_seed(1)
        network = Detector(small)
        with torch.no_grad():
            network.units["head"].cls.bias += 3  # type: ignore[union-attr, operator]
        run_task(UnlabelledTask(network, data, both), config, folder, running)

    train(tmp_path / "whole")
    real = RunFiles.save_state

    def once(self: RunFiles) -> None:
        real(self)
        if (self.epoch, self.steps) == (1, 1):
            raise KilledError

    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr(RunFiles, "save_state", once)
        train(tmp_path / "cut")
    train(tmp_path / "cut", Running(resume=True))
    one, two = (torch.load(tmp_path / name / "state.pt") for name in ("whole", "cut"))
    assert all(torch.equal(one["average"][key], two["average"][key]) for key in one["average"])
    assert all(torch.equal(one["task"][key], two["task"][key]) for key in one["task"])
    row = read_info(tmp_path / "cut" / "weights.safetensors").history[-1]
    assert row["unlabelled_classes"] >= 0 and "labelled_found" in row  # type: ignore[typeddict-item]
    assert read_info(tmp_path / "cut" / "weights.safetensors").facts["unlabelled"] == 5


def test_the_family_of_detr(data: DetectionSet, both: DetectionSet) -> None:
    """Its outputs have layers before images."""
    from supernet.network import build

    torch.manual_seed(0)
    network = build(SMALL.with_(num_classes=4, input_size=SIZE)).train()
    task = UnlabelledTask(network, data, both)
    task.begin(Averaged(task.network, 0.9), Group())
    batch = next(task.feed(CONFIG, range(1), Group(), 0, 0))
    task.trust.right_KS += 100
    task.trust.objects += 1000
    images, targets = task.prepare(batch, CONFIG)
    terms = task.loss(task.model(images), targets, CONFIG)
    assert any(key.startswith("unlabelled_") for key in terms)
    assert all(value.isfinite() for value in terms.values())


def test_the_command(tmp_path: Path, small: Architecture) -> None:
    shapes, more = tmp_path / "shapes", tmp_path / "more"
    make_shapes(shapes, train=4, val=1)
    file = tmp_path / "small.json"
    small.save(file)
    (more / "deep").mkdir(parents=True)
    common = [
        *("train", "--data", shapes, "--architecture", file, "--input-size", "64x96"),
        *("--epochs", 1, "--batch-size", 4, "--eval-every", 0, "--precision", "f32"),
        *("--out", tmp_path / "run", "--unlabelled", more),
    ]
    assert "no image in this folder" in fails(2, *common)
    for name in ("a", "b"):
        pixels = np.full((64, 96, 3), ord(name), np.uint8)
        cv2.imwrite(str(more / "deep" / f"{name}.png"), pixels)
    for number in range(3):  # of the set itself
        name = f"train_{number:05}.jpg"
        (more / name).symlink_to(shapes / "train" / name)
    assert "no such folder" in fails(2, *common[:-1], tmp_path / "none")
    assert "keeps no averaged weights" in fails(2, *common, "--recipe", "1x")
    assert "leave --teacher and --unlabelled out" in fails(2, *common, "--recipe", "mtkd")
    code, result, errors = run(*common)
    assert code == 0 and result["unlabelled"] == 2 and result["images"] == 4, errors
    assert "3 of its 5 images are in the training data: their labels hold" in errors
    assert "were not learnt from: at the end the averaged weights find 0% of" in errors
    without = common[:-2]
    assert "other images or annotations" in fails(2, *without)
