"""heat label: a COCO set of a teacher's detections, that goes on and replaces nothing."""

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from latency_tables.probe.lock import only_one
from supernet.data.coco import load_split
from supernet.data.pseudo_labels import ImageFound, label_images
from tests.command_line import fails, run
from tests.toy_teachers import nms_rows, write_onnx

pytestmark = pytest.mark.usefixtures("looking_here")

NAMES = {"names": "['disc', 'horse', 'square']"}


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """Finds a disc of 0.9 and one of 0.45 on every image, and a horse."""
    rows = nms_rows([10, 10, 30, 30, 0.9, 0], [50, 20, 90, 60, 0.45, 0], [4, 4, 20, 20, 0.8, 1])
    return write_onnx(tmp_path / "m.onnx", {"out": rows}, metadata=NAMES)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images in folders, of twice the teacher's input, and a file that is none."""
    root = tmp_path / "photos"
    for index, name in enumerate(("a.png", "deep/er/b.jpg")):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((128, 192, 3), 90 + index, np.uint8))
    (root / "broken.jpg").write_bytes(b"no image")
    return root


def read(out: Path) -> Any:
    return json.loads((out / "annotations" / "instances_train.json").read_text())


def test_labels_are_a_coco_set(tmp_path: Path, images: Path, teacher: Path) -> None:
    from pycocotools.coco import COCO

    out = tmp_path / "labelled"
    asked = ["label", images, "--teacher", teacher, "--out", out]
    code, result, errors = run(*asked, "--score", 0.4)
    assert code == 0, errors
    assert result["images"] == 2 and result["labels"] == {"disc": 4, "horse": 2, "square": 0}
    assert result["not_decoded"] == [str(images / "broken.jpg")] and result["looked_at_now"] == 2
    file = read(out)
    assert [image["file_name"] for image in file["images"]] == ["a.png", "deep/er/b.jpg"]
    first = file["annotations"][0]
    assert first["bbox"] == [20, 20, 40, 40] and first["area"] == 1600 and first["score"] == 0.9
    assert file["info"]["teacher"] == "m.onnx" and file["info"]["thresholds"]["disc"] == 0.4
    assert len(COCO(str(out / "annotations" / "instances_train.json")).getAnnIds()) == 6
    data = load_split(out, "train")
    assert data.num_boxes == 6 and not data.problems and data.names == ("disc", "horse", "square")
    with (out / "uncertain.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [(row["image"], row["score"], row["labelled"]) for row in rows] == [
        ("a.png", "0.45", "yes"), ("deep/er/b.jpg", "0.45", "yes"),
    ]  # fmt: skip
    # Another threshold needs no other look; a set that a person corrected is kept.
    code, result, errors = run(*asked, "--score", 0.6)
    assert code == 0 and result["looked_at_now"] == 0 and result["labels"]["disc"] == 2, errors
    path = out / "annotations" / "instances_train.json"
    path.write_text(path.read_text().replace("horse", "Horse"))
    before = path.read_bytes()
    assert "not as heat label wrote it: it is kept" in fails(2, *asked, "--score", 0.5)
    assert path.read_bytes() == before


def test_thresholds_of_best_f1(tmp_path: Path, shapes: Path, images: Path, teacher: Path) -> None:
    """A teacher without thresholds finds them on a labelled split; only its classes are kept."""
    out = tmp_path / "labelled"
    asked = ["label", images, "--teacher", teacher, "--out", out]
    assert "give --data DIR with a labelled val split" in fails(2, *asked)
    assert not (out / "annotations").exists()
    code, result, errors = run(*asked, "--data", shapes)
    assert code == 0, errors
    assert result["classes_left_out"] == ["horse"] and "horse" not in result["labels"]
    assert list(result["labels"]) == list(load_split(shapes, "train").names)
    assert result["thresholds_are"].startswith("best F1 (IoU 0.5) on 8 images of shapes val")


def test_a_number_needs_no_labelled_images(
    tmp_path: Path, shapes: Path, images: Path, teacher: Path
) -> None:
    """Of the set only the classes are taken: a train split says them too."""
    only = tmp_path / "only"
    (only / "annotations").mkdir(parents=True)
    (only / "train").symlink_to(shapes / "train")
    labels = "annotations/instances_train.json"
    (only / labels).write_bytes((shapes / labels).read_bytes())
    asked = ["label", images, "--teacher", teacher, "--data", only, "--out", tmp_path / "labelled"]
    code, result, errors = run(*asked, "--score", 0.4)
    assert code == 0 and result["classes_left_out"] == ["horse"], errors
    assert "val" in fails(2, *asked)


def test_what_is_refused(tmp_path: Path, images: Path, teacher: Path) -> None:
    asked = ["label", images, "--teacher", teacher, "--score", 0.4]
    assert "is within the images" in fails(2, *asked, "--out", images / "labels")
    out = ["--out", tmp_path / "out"]
    assert "--score high: a number" in fails(2, *asked[:-1], "high", *out)
    assert "--score 2: a number from 0 to 1" in fails(2, *asked[:-1], 2, *out)
    assert "which detector?" in fails(2, "label", images, *out)
    assert "no folder of images" in fails(2, "label", tmp_path / "x", *asked[2:], *out)
    assert run(*asked, *out)[0] == 0
    other = tmp_path / "other.onnx"
    assert "holds what another teacher found (m.onnx" in fails(
        2, "label", images, "--teacher", write_onnx(other, {"out": nms_rows()}, metadata=NAMES),
        "--score", 0.4, *out,
    )  # fmt: skip
    mine = tmp_path / "mine"
    (mine / "train").mkdir(parents=True)
    assert "is there already, not" in fails(2, *asked, "--out", mine)
    assert not (mine / "annotations").exists()
    busy = tmp_path / "busy"
    with only_one(busy / "teacher.jsonl", "labelling"):
        assert "is labelling into" in fails(2, *asked, "--out", busy)


def test_uncertain_ones_are_on_both_sides_of_a_threshold() -> None:
    boxes = np.tile(np.array([0, 0, 4, 4], np.float32), (4, 1))
    scores = np.array([0.9, 0.58, 0.42, 0.2], np.float32)
    found = ImageFound("a", (10, 10), (boxes, scores, np.zeros(4, np.int64)))
    labels = label_images([found], ["x"], [0.5], {})
    assert [a["score"] for a in labels.file["annotations"]] == [0.9, 0.58]
    assert [(round(u.score, 1), u.annotation_id) for u in labels.uncertain] == [
        (0.6, 2),
        (0.4, None),
    ]


def test_names_that_are_no_utf_8_keep_their_bytes(tmp_path: Path, teacher: Path) -> None:
    """All images were looked at, and then nothing could be written."""
    folder = tmp_path / "photos"
    folder.mkdir()
    name = os.fsdecode(b"caf\xe9.png")
    cv2.imencode(".png", np.full((64, 96, 3), 90, np.uint8))[1].tofile(folder / name)
    out = tmp_path / "out"
    asked = ["label", folder, "--teacher", teacher, "--score", 0.5, "--out", out]
    for _ in range(2):
        code, result, errors = run(*asked)
        assert code == 0 and result["uncertain"] == 1, errors
    assert b"caf\xe9.png" in (out / Path(result["uncertain_list"]).name).read_bytes()


def test_classes_of_a_set_without_val_are_kept(
    tmp_path: Path, images: Path, teacher: Path, shapes: Path
) -> None:
    known = tmp_path / "known"
    shutil.copytree(shapes / "train", known / "train")
    shutil.copytree(shapes / "annotations", known / "annotations")
    (known / "annotations" / "instances_val.json").unlink()
    asked = ["label", images, "--teacher", teacher, "--data", known, "--out", tmp_path / "out"]
    assert run(*asked, "--score", 0.5)[0] == 0
    assert "no split 'val'" not in fails(2, *asked, "--score", "auto")
