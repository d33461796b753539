"""Thresholds of classes: found at export, recorded in the card, used by everything that detects."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import heat
from deploy.edge.detect import Bundle, Found
from deploy.edge.score_limits import score_limits
from deploy.edge.track import Tracker
from deploy.edge.work import DetectOptions, detect_files
from deploy.export import export_bundle
from deploy.form import Form
from deploy.gate import torch_detect
from deploy.judge import Judge
from heat.stages.evaluate import evaluate_bundle
from heat.workspace import Workspace
from supernet.data import evaluate
from supernet.data.detection_set import DetectionSet, Record
from supernet.data.labelled_image import LabelledImage, load_image
from supernet.data.shapes import draw
from supernet.errors import BundleError, UserError
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.operators.head import Head
from supernet.letterbox import Image
from tests.command_line import run

NAMES = ("a", "b", "c")


def labelled(network: Detector, folder: Path) -> DetectionSet:
    """Label images with what torch finds there, of classes a and c; of a each third is left out."""
    rng = np.random.default_rng(3)
    folder.mkdir()
    records = []
    for index in range(4):
        image: Image = draw(rng).pixels
        path = folder / f"{index}.png"
        cv2.imwrite(str(path), image[:, :, ::-1])
        boxes, _, labels = torch_detect(network)(image)
        kept = np.flatnonzero((labels != 0) | (np.arange(len(labels)) % 3 != 0))
        height, width = image.shape[:2]
        records.append(Record(index + 1, path, height, width, boxes[kept], labels[kept]))
    return DetectionSet(folder, "val", folder / "x.json", NAMES, (1, 2, 3), tuple(records))


@pytest.fixture
def network(network: Detector) -> Detector:
    """The network of random weights: scores spread, nothing of class b, boxes seldom overlap."""
    head = network.units["head"]
    assert isinstance(head, Head) and head.cls.bias is not None and head.box.bias is not None
    with torch.no_grad():
        head.cls.weight *= 8
        head.cls.bias.fill_(-6.0)
        head.cls.bias[[0, -1]] = 0.5  # a of the smallest anchor, c of the largest
        head.box.bias.zero_()
    return network


@pytest.fixture
def data(network: Detector, tmp_path: Path) -> DetectionSet:
    return labelled(network, tmp_path / "images")


@pytest.fixture
def bundle(network: Detector, data: DetectionSet, tmp_path: Path) -> Path:
    images = [cv2.imread(str(record.path))[:, :, ::-1].copy() for record in data.records]
    done = export_bundle(
        network, tmp_path / "bundle", Form(), names=NAMES, images=images,
        facts={"trained": True, "target_fps": None}, judge=Judge.of(torch_detect(network), data),
    )  # fmt: skip
    return done.folder


def change_card(folder: Path, **facts: Any) -> None:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, **facts}))


def f1(founds: list[Found], data: DetectionSet, label: int, least: float) -> float:
    """Return the F1 of a class, counted plainly."""
    right = found = truth = 0
    for record, one in zip(data.records, founds, strict=True):
        objects = record.boxes_xyxy[record.labels == label].tolist()
        truth += len(objects)
        kept = one.above(least)
        for box, name in zip(kept.boxes_xyxy_px.tolist(), kept.labels, strict=True):
            if name != label:
                continue
            found += 1
            overlaps = [_iou(box, other) for other in objects]
            if overlaps and max(overlaps) >= 0.5:
                objects.pop(int(np.argmax(overlaps)))
                right += 1
    return 2 * right / (found + truth)


def _iou(a: list[float], b: list[float]) -> float:
    wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(wide, 0) * max(tall, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def test_each_class_has_the_threshold_of_its_best_f1(bundle: Path, data: DetectionSet) -> None:
    card = json.loads((bundle / "card.json").read_text())
    thresholds = card["thresholds"]
    assert list(thresholds) == list(NAMES) and thresholds["b"] is None
    assert (
        "best F1" in card["thresholds_are"] and "4 images of images val" in card["thresholds_are"]
    )
    loaded = Bundle(bundle)
    founds = [loaded.detect(record.path, score=0.0) for record in data.records]
    for label in (0, 2):
        candidates = {
            float(score)
            for one in founds
            for score, own in zip(one.scores, one.labels, strict=True)
            if own == label
        }
        best = max(f1(founds, data, label, each) for each in candidates)
        assert f1(founds, data, label, thresholds[NAMES[label]]) == pytest.approx(best)


def test_no_image_is_detected_on_twice(
    network: Detector, data: DetectionSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def count(record: Record) -> LabelledImage:
        read.append(record.path)
        return load_image(record)

    monkeypatch.setattr(evaluate, "load_image", count)
    image = load_image(data.records[0]).pixels
    export_bundle(
        network, tmp_path / "bundle", Form(), names=NAMES, images=[image],
        facts={"trained": True, "target_fps": None}, judge=Judge.of(torch_detect(network), data),
    )  # fmt: skip
    assert len(read) == 2 * len(data.records), "once in torch, once in the artefact"


def test_everything_that_detects_uses_them_unless_a_score_is_given(
    bundle: Path, data: DetectionSet, tmp_path: Path
) -> None:
    change_card(bundle, thresholds={"a": 0.5, "b": None, "c": 0.05})
    limits = np.array([0.5, 0.3, 0.05], np.float32)
    loaded, path = heat.load(bundle), data.records[0].path
    every = loaded.detect(path, score=0.0)
    assert len(every.scores) > len(loaded.detect(path, score=0.6).scores) > 0
    expected = [
        round(float(score), 4)
        for score, label in zip(every.scores, every.labels, strict=True)
        if score >= limits[label]
    ]
    assert 0 < len(expected) < len(every.scores)
    assert loaded.detect(path).record(loaded.names)["scores"] == expected
    assert loaded.detect(path, score=0.6).scores.min() >= 0.6
    out = tmp_path / "out"
    code, found, errors = run("detect", bundle, path, "--save", out, "--labels", "coco")
    assert code == 0 and found["detections"][0]["scores"] == expected, errors
    written = json.loads((out / "labels.json").read_text())["annotations"]
    assert [item["score"] for item in written] == expected
    script = [sys.executable, str(bundle / "detect.py"), str(path)]
    for more, scores in (
        ([], expected),
        (["--score", "0.6"], loaded.detect(path, score=0.6).record(loaded.names)["scores"]),
    ):
        done = subprocess.run([*script, *more], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["detections"][0]["scores"] == scores
    tiled, _ = detect_files(loaded, [path], DetectOptions(tiles=True))
    pairs = list(zip(tiled[0]["scores"], tiled[0]["names"], strict=True))
    assert all(score >= limits[NAMES.index(name)] for score, name in pairs)
    assert len({name for _, name in pairs}) == 2


def test_average_precision_is_of_all_detections(
    bundle: Path, data: DetectionSet, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "run")
    before = evaluate_bundle(workspace, bundle, data)
    change_card(bundle, thresholds={"a": 1.0, "b": 1.0, "c": 1.0})
    after = evaluate_bundle(workspace, bundle, data)
    assert before["ap"] == after["ap"] > 0
    assert len(Bundle(bundle).detect(data.records[0].path).scores) == 0
    card = json.loads((bundle / "card.json").read_text())
    assert card["thresholds"]["a"] == 1.0 and card["accuracy_check"]["drop"] == 0.0


def test_a_card_without_thresholds_is_as_before(bundle: Path, data: DetectionSet) -> None:
    card = json.loads((bundle / "card.json").read_text())
    del card["thresholds"], card["thresholds_are"]
    (bundle / "card.json").write_text(json.dumps(card))
    loaded, path = Bundle(bundle), data.records[0].path
    every = loaded.detect(path, score=0.0)
    assert np.array_equal(loaded.detect(path).scores, every.scores)
    records, _ = detect_files(loaded, [path], DetectOptions())
    assert len(records[0]["scores"]) == int((every.scores >= np.float32(0.3)).sum())


@pytest.mark.parametrize(
    "thresholds", [{"a": 1.5}, {"a": "0.5"}, {"dog": 0.5}, {"a": float("nan")}, {"a": True}, [0.5]]
)
def test_thresholds_that_are_none_are_refused(thresholds: Any) -> None:
    with pytest.raises(BundleError, match=r"card\.json: thresholds has"):
        score_limits({"thresholds": thresholds}, NAMES)


def test_scores_that_are_none_are_refused(bundle: Path, data: DetectionSet) -> None:
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match="a number from 0 to 1"):
            Bundle(bundle).detect(data.records[0].path, score=wrong)


def test_a_track_begins_from_the_threshold_of_its_class() -> None:
    tracker = Tracker(25.0, np.array([0.8, 0.2], np.float32))
    boxes = np.array([[0, 0, 20, 20], [50, 50, 80, 80]], np.float32)
    for frame in range(3):
        rows, _ = tracker.update(boxes, np.array([0.5, 0.5], np.float32), np.array([0, 1]))
        assert rows.tolist() == [1], frame


def test_a_track_begins_where_a_threshold_is_high() -> None:
    """It needed a score of 1."""
    tracker = Tracker(25.0, np.array([0.92], np.float32))
    box = np.array([[0, 0, 20, 20]], np.float32)
    for frame in range(3):
        rows, _ = tracker.update(box, np.array([0.97], np.float32), np.array([0]))
        assert rows.tolist() == [0], frame
