"""Annotations as people write them: trained on, checked and scored are the same boxes."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from supernet.data.coco import load_split
from supernet.data.detection_set import check_trainable
from supernet.data.evaluate import score_rows
from supernet.data.masks import mask_box
from supernet.errors import DataError


def write(root: Path, annotations: list[dict[str, Any]], split: str = "train", **head: Any) -> Path:
    """Write two images of 100x200 pixels, with ids 1 and 2, and classes cat (3) and dog (7)."""
    (root / split).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(root / split / name), np.full((100, 200, 3), 90, np.uint8))
    content = {
        "images": [
            {"id": i, "file_name": name, "width": 200, "height": 100}
            for i, name in ((1, "a.png"), (2, "b.png"))
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": annotations,
    }
    text = json.dumps(content | head)
    (root / "annotations" / f"instances_{split}.json").write_text(text)
    return root


def note(image: Any = 1, category: Any = 3, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": [10, 20, 40, 30], **more}


BOTH = [note(), note(2, 7, bbox=[60, 5, 20, 20])]


def ap(root: Path, split: str = "train") -> float:
    """Return the AP of the boxes that would be trained on, as detections."""
    data = load_split(root, split)
    rows = [
        {
            "image_id": record.image_id,
            "category_id": data.category_ids[label],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": 0.9,
        }
        for record in data.records
        for (x0, y0, x1, y1), label in zip(
            record.boxes_xyxy.tolist(), record.labels.tolist(), strict=True
        )
    ]
    return score_rows(rows, data).ap


@pytest.mark.parametrize(
    ("annotations", "head"),
    [
        ([{**a, "id": i} for i, a in enumerate(BOTH)], {}),  # ids from 0
        ([{**a, "id": 5} for a in BOTH], {}),  # one id for all
        ([note("1", "3"), note("2", "7", bbox=[60, 5, 20, 20])], {}),
        ([note(1.0, 3.0), note(2, 7)], {}),
        ([note(iscrowd="0"), note(2, 7, iscrowd=None)], {}),
        ([note(area=None), note(2, 7, area="many")], {}),
        ([note(area=0), note(2, 7, area="12.5")], {}),
        ([note(bbox=["10", "20", "40", "30"]), note(2, 7)], {}),
        (BOTH, {"categories": [{"id": "3", "name": "cat"}, {"id": "7", "name": "dog"}]}),
        ([*BOTH, note(bbox=[10, 200, 30, 30])], {}),  # wholly outside
        ([*BOTH, note(2, bbox=[190, 90, 30, 30])], {}),  # half outside
        ([*BOTH, *BOTH], {}),
    ],
)
def test_a_perfect_detector_scores_one(
    tmp_path: Path, annotations: list[dict[str, Any]], head: dict[str, Any]
) -> None:
    assert ap(write(tmp_path, annotations, **head)) == pytest.approx(1.0)


@pytest.mark.parametrize("ids", [("1", "2"), ("img_a", "img_b"), ("a1", 7)])
def test_image_ids_may_be_text(tmp_path: Path, ids: tuple[Any, Any]) -> None:
    files = [
        {"id": i, "file_name": name, "width": 200, "height": 100}
        for i, name in zip(ids, ("a.png", "b.png"), strict=True)
    ]
    notes = [{**a, "image_id": i} for a, i in zip(BOTH, ids, strict=True)]
    root = write(tmp_path, notes, images=files)
    assert ap(root) == pytest.approx(1.0)
    data = load_split(root, "train")
    assert [record.image_id for record in data.records] == [1, 2] and data.problems == ()
    part = data.of(data.records[:1])
    assert len(part.ground_truth["annotations"]) == len(part.ground_truth["images"]) == 1


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        (note(category="cat"), "broken annotation"),
        (note(category=3.5), "broken annotation"),
        (note(category=True), "broken annotation"),
        (note(image=None), "broken annotation"),
        (note(image="nowhere"), "unknown image"),
        (note(iscrowd="maybe"), "broken annotation"),
        (note(bbox=["1_0", 20, 40, 30]), "broken annotation"),
        (note(bbox=None, segmentation={"counts": "abc", "size": [1, 2]}), "broken annotation"),
        (note(bbox=None), "broken annotation"),
        (None, "broken annotation"),
        (note(bbox="1234"), "broken annotation"),
        (note(bbox=[10**400, 20, 40, 30]), "broken annotation"),
        (note(category=10**400), "broken annotation"),
        (note(image=10**400), "unknown image"),
        (note(bbox=[10, 20, float("inf"), 30]), "degenerate box"),
    ],
)
def test_what_is_no_number_is_reported(tmp_path: Path, annotation: Any, kind: str) -> None:
    data = load_split(write(tmp_path, [note(2), annotation]), "train")
    assert [problem.kind for problem in data.problems] == [kind]
    assert data.num_boxes == len(data.ground_truth["annotations"]) == 1


def test_duplicates_are_reported_and_count_once(tmp_path: Path) -> None:
    notes = [note(), note(), note(category=7), note(2)]
    data = load_split(write(tmp_path, notes), "train")
    assert [(p.kind, Path(p.where).name) for p in data.problems] == [("duplicate box", "a.png")]
    assert data.num_boxes == 3


def test_boxes_come_from_polygons_where_there_are_none(tmp_path: Path) -> None:
    polygons = [[10, 20, 50, 20, 50, 50], [5, 30, 9, 31, 8, 40]]
    plain = {"image_id": 1, "category_id": 3, "segmentation": polygons, "area": 77}
    data = load_split(write(tmp_path, [plain, note(2, 7, bbox=[], segmentation=polygons)]), "train")
    assert [r.boxes_xyxy.tolist() for r in data.records] == [[[5, 20, 50, 50]]] * 2
    assert [a["area"] for a in data.ground_truth["annotations"]] == [77, 45 * 30]
    assert data.problems == ()


@pytest.mark.parametrize("width", [None, "wide", 0, -5, ""])
def test_a_size_that_is_not_stated_is_that_of_the_file(tmp_path: Path, width: Any) -> None:
    files = [
        {"id": 1, "file_name": "a.png", "width": width, "height": 100},
        {"id": 2, "file_name": "b.png"},
    ]
    data = load_split(write(tmp_path, BOTH, images=files), "train")
    assert [(r.width, r.height) for r in data.records] == [(200, 100)] * 2
    assert [p.kind for p in data.problems] == ["image size not stated"] * 2
    assert "taken from the file: 200x100" in data.problems[0].detail


def test_sizes_as_text_are_numbers(tmp_path: Path) -> None:
    files = [{"id": 1, "file_name": "a.png", "width": "200", "height": 100.0}]
    data = load_split(write(tmp_path, [note()], images=files), "train")
    assert (data.records[0].width, data.records[0].height) == (200, 100) and data.problems == ()


def test_file_names_with_backslashes(tmp_path: Path) -> None:
    root = write(tmp_path, [note()])
    (root / "train" / "below").mkdir()
    (root / "train" / "a.png").rename(root / "train" / "below" / "a.png")
    files = [{"id": 1, "file_name": "below\\a.png", "width": 200, "height": 100}]
    write(tmp_path, [note()], images=files)
    assert load_split(root, "train").records[0].path == root / "train" / "below" / "a.png"


def test_two_classes_of_one_name_are_reported(tmp_path: Path) -> None:
    head = {"categories": [{"id": 0, "name": "car"}, {"id": 1, "name": "car"}]}
    data = load_split(write(tmp_path, [note(category=1)], **head), "train")
    assert data.names == ("car", "car")
    assert data.problems[0].detail == "car: category ids [0, 1], kept apart"


def test_category_ids_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    head = {"categories": [{"id": "x", "name": "car"}]}
    with pytest.raises(DataError, match=r"category ids must be whole numbers, found \['x'\]"):
        load_split(write(tmp_path, [], **head), "train")


def test_sets_without_a_box_are_not_trained_on(tmp_path: Path) -> None:
    for name, notes in (("a", []), ("b", [note(iscrowd=1)]), ("c", [note(bbox=[5, 5, 0, 0])])):
        data = load_split(write(tmp_path / name, notes), "train")
        with pytest.raises(DataError, match="no box to train on in the 2 images of train"):
            check_trainable(data)
    data = load_split(write(tmp_path / "d", [note()]), "train")
    check_trainable(data)
    with pytest.raises(DataError, match="1 image to train on, at least 2"):
        check_trainable(data.of(data.records[:1]))


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    first = load_split(write(tmp_path / "a", BOTH), "train")
    moved = load_split(write(tmp_path / "b", BOTH), "train")
    assert first.digest == moved.digest
    others = [
        [note(), note(2, 3, bbox=[60, 5, 20, 20])],  # another class
        [note(), note(2, 7, bbox=[61, 5, 20, 20])],  # another box
        [note(), note(2, 7, bbox=[60, 5, 20, 20], iscrowd=1)],
        [note(2), note(1, 7, bbox=[60, 5, 20, 20])],  # the other images
    ]
    digests = {load_split(write(tmp_path / "c", n), "train").digest for n in others}
    assert len(digests) == 4 and first.digest not in digests
    assert first.of(first.records[:1]).digest != first.digest
    cv2.imwrite(str(tmp_path / "b" / "train" / "a.png"), np.eye(100, 200, dtype=np.uint8) * 255)
    assert moved.digest != first.digest


def test_bom_before_json(tmp_path: Path) -> None:
    root = write(tmp_path, BOTH)
    file = root / "annotations" / "instances_train.json"
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert load_split(root, "train").num_boxes == 2


def masks_of(pixels: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    """Return a mask as COCO's two kinds of runs: a list of lengths, and a text."""
    flat = pixels.flatten(order="F")
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat])))
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    coded = coco_mask.encode(np.asfortranarray(pixels))
    size = list(pixels.shape)
    text = coded["counts"].decode()
    return [{"size": size, "counts": counts}, {"size": size, "counts": text}]


def test_boxes_come_from_masks_where_there_are_none(tmp_path: Path) -> None:
    """They were reported as broken annotations, and skipped."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(20):
        pixels = np.zeros((100, 200), np.uint8)
        for _ in range(rng.integers(1, 4)):
            x, y = rng.integers(0, 150), rng.integers(0, 70)
            pixels[y : y + rng.integers(1, 30), x : x + rng.integers(1, 50)] = 1
        drawn.append(pixels & (rng.random(pixels.shape) < 0.9))
    drawn += [np.ones((100, 200), np.uint8), np.eye(100, 200, dtype=np.uint8)]
    for pixels in drawn:
        expected = coco_mask.toBbox(coco_mask.encode(np.asfortranarray(pixels))).tolist()
        for mask in masks_of(pixels):
            assert list(mask_box(mask)) == expected
    notes = [
        {"image_id": image, "category_id": 3, "segmentation": mask, "iscrowd": crowd}
        for image, crowd in ((1, 0), (2, 1))
        for mask in masks_of(drawn[image])
    ]
    data = load_split(write(tmp_path, notes[:1] + notes[3:]), "train")
    assert data.problems == () and (data.num_boxes, data.num_crowd) == (1, 1)
    x, y, w, h = mask_box(notes[0]["segmentation"])
    assert data.records[0].boxes_xyxy.tolist() == [[x, y, x + w, y + h]]


@pytest.mark.parametrize(
    ("mask", "kind"),
    [
        ({"size": [100, 200], "counts": [10, 5]}, "broken annotation"),
        ({"size": [100, 200], "counts": [20010, -10]}, "broken annotation"),
        ({"size": [100, 200], "counts": ["a", "b"]}, "broken annotation"),
        ({"size": [100, 200], "counts": "P"}, "broken annotation"),
        ({"size": [100, 200], "counts": "\n~"}, "broken annotation"),
        ({"size": [100, 200]}, "broken annotation"),
        ({"size": [0, 0], "counts": []}, "broken annotation"),
        ({"counts": [20000]}, "broken annotation"),
        ({"size": [100, 200], "counts": [20000]}, "degenerate box"),
        ({"size": [50, 100], "counts": [10, 4990]}, "mask of another size"),
    ],
)
def test_masks_that_are_none_are_reported(tmp_path: Path, mask: Any, kind: str) -> None:
    bad = {"image_id": 1, "category_id": 3, "segmentation": mask}
    data = load_split(write(tmp_path, [bad, note(2)]), "train")
    assert [problem.kind for problem in data.problems] == [kind]
    assert data.num_boxes == 1
