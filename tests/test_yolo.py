"""Sets in YOLO format read as the same sets in COCO format do."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from supernet.coco import load_split, splits_of
from supernet.errors import DataError


def write(root: Path, labels: str, **head: object) -> Path:
    for split in ("train", "val"):
        (root / split / "images").mkdir(parents=True)
        (root / split / "labels").mkdir()
        picture = np.full((40, 60, 3), 90, dtype=np.uint8)
        cv2.imwrite(str(root / split / "images" / "a.jpg"), picture)
        cv2.imwrite(str(root / split / "images" / "b.png"), picture)
        (root / split / "labels" / "a.txt").write_text(labels)
    usual = {"train": "../train/images", "val": "val/images", "names": ["a cat", "Dog-1"], "nc": 2}
    (root / "data.yaml").write_text(yaml.safe_dump(usual | head))
    return root


def test_boxes_names_and_pictures_without_objects(tmp_path: Path) -> None:
    root = write(tmp_path, "1 0.5 0.5 0.5 0.25\n0 0.1 0.1 0.3 0.1 0.3 0.5\n")
    assert splits_of(root) == ("train", "val")
    data = load_split(root, "train")
    assert data.names == ("a cat", "Dog-1") and data.category_ids == (0, 1)
    assert data.records[0].boxes_xyxy.tolist() == [[15, 15, 45, 25], [6, 4, 18, 20]]
    assert data.records[0].labels.tolist() == [1, 0]
    assert len(data.records) == 2 and len(data.records[1].labels) == 0
    assert len(data.ground_truth["annotations"]) == 2 and data.problems == ()


def test_names_by_number_and_lists_of_files(tmp_path: Path) -> None:
    root = write(tmp_path, "0 0.5 0.5 0.5 0.5\n", names={0: "x", 1: "y"}, train="list.txt")
    (root / "list.txt").write_text("val/images/a.jpg\n\n")
    data = load_split(root, "train")
    assert data.names == ("x", "y") and len(data.records) == 1


def test_wrong_lines_are_kept_as_problems(tmp_path: Path) -> None:
    root = write(tmp_path, "2 0.5 0.5 0.5 0.5\nx 1\n0 12 30 40 50\n0 0.5 0.5\n1 0.5 0.5 1 1\n")
    data = load_split(root, "val")
    assert [p.kind for p in data.problems] == [
        "unknown class", "broken annotation", "not a share of the image", "broken annotation",
    ]  # fmt: skip
    assert data.problems[0].where == "a.txt line 1" and len(data.records[0].labels) == 1


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"names": []}, "names must be a list"),
        ({"names": {1: "a"}}, "numbered 0 to 0"),
        ({"nc": 3}, "nc is 3, but there are 2 names"),
        ({"train": "nowhere"}, "train is nowhere, and there is no"),
    ],
)
def test_broken_heads_are_named(tmp_path: Path, head: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_split(write(tmp_path, "", **head), "train")


def test_no_yaml(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("names: [a\n")
    with pytest.raises(DataError, match="not valid YAML"):
        splits_of(tmp_path)
