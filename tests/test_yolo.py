"""Sets in YOLO format read as the same sets in COCO format do."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from supernet.data.coco import load_split, splits_of
from supernet.data.detection_set import check_trainable
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


LINE = "1 0.5 0.5 0.5 0.25\n"
BOX = [[15, 15, 45, 25]]


@pytest.mark.parametrize("place", ["y", "."])
def test_a_relative_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    write(tmp_path / "y", LINE)
    monkeypatch.chdir(tmp_path if place == "y" else tmp_path / "y")
    data = load_split(Path(place), "train")
    assert data.problems == () and data.records[0].boxes_xyxy.tolist() == BOX
    absolute = load_split(tmp_path / "y", "train")
    assert data.digest == absolute.digest


@pytest.mark.parametrize(
    "line",
    [
        "{root}/val/images/a.jpg", "./val/images/a.jpg", "val\\images\\a.jpg", "images/a.jpg",
        "/content/elsewhere/val/images/a.jpg", "C:\\sets\\val\\images\\a.jpg",
        "\ufeffval/images/a.jpg",
    ],
)  # fmt: skip
def test_lists_as_other_machines_write_them(tmp_path: Path, line: str) -> None:
    root = write(tmp_path, LINE, train="list.txt", path="val")
    (root / "list.txt").write_text(line.format(root=root) + "\r\nval/images/gone.jpg\n")
    data = load_split(root, "train")
    assert [r.path.name for r in data.records] == ["a.jpg"]
    assert data.records[0].boxes_xyxy.tolist() == BOX
    assert [(p.kind, Path(p.where).name) for p in data.problems] == [("missing image", "gone.jpg")]


def test_folders_with_backslashes(tmp_path: Path) -> None:
    root = write(tmp_path, LINE, train="..\\train\\images")
    assert load_split(root, "train").num_boxes == 1


@pytest.mark.parametrize(
    "names", ["[no, yes]", "{0: off, 1: on}", "[010, 1_000]", "[12:30, ~]", "[null, 1e3]"]
)
def test_names_are_text_as_written(tmp_path: Path, names: str) -> None:
    root = write(tmp_path, LINE)
    (root / "data.yaml").write_text(f"train: train/images\nval: val/images\nnames: {names}\n")
    written = names.strip("[]{}").replace("0: off", "off").replace("1: on", "on").split(", ")
    assert load_split(root, "train").names == tuple(written)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("[[a, b], c]", "every class needs a name as text"),
        ("['', c]", "every class needs a name as text"),
        ("{0: red, blue: 1}", "names must be numbered 0 to 1, found the keys 0, blue"),
        ("{0: red, 00: blue}", "names must be numbered 0 to 1"),
    ],
)
def test_names_that_are_no_text_are_refused(tmp_path: Path, names: str, message: str) -> None:
    root = write(tmp_path, LINE)
    (root / "data.yaml").write_text(f"train: train/images\nnames: {names}\n")
    with pytest.raises(DataError, match=message):
        load_split(root, "train")


def test_the_number_of_classes_as_text(tmp_path: Path) -> None:
    assert load_split(write(tmp_path / "a", LINE, nc="2"), "train").num_classes == 2
    with pytest.raises(DataError, match="nc is two"):
        load_split(write(tmp_path / "b", LINE, nc="two"), "train")


@pytest.mark.parametrize("shape", [[2, 2], [2, 3], [17, 3]])
def test_keypoints_are_no_polygons(tmp_path: Path, shape: list[int]) -> None:
    points = " 0.1" * (shape[0] * shape[1])
    labels = f"1 0.5 0.5 0.5 0.25{points}\n0 0.5 0.5 0.5 0.5 0.1 0.2\n"
    data = load_split(write(tmp_path, labels, kpt_shape=shape), "train")
    assert data.records[0].boxes_xyxy.tolist() == BOX
    assert [p.kind for p in data.problems] == ["broken annotation"]


def test_a_confidence_at_the_end_is_left_out(tmp_path: Path) -> None:
    labels = "1 0.5 0.5 0.5 0.25 0.93\n0 0.1 0.1 0.3 0.1 0.3 0.5 0.7\n"
    data = load_split(write(tmp_path, labels), "train")
    assert data.records[0].boxes_xyxy.tolist() == [*BOX, [6, 4, 18, 20]] and data.problems == ()


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
def test_labels_of_any_coding(tmp_path: Path, coding: str) -> None:
    root = write(tmp_path, "")
    text = LINE if coding != "utf-16-le" else "\ufeff" + LINE
    (root / "train" / "labels" / "a.txt").write_bytes(text.encode(coding))
    data = load_split(root, "train")
    assert data.records[0].boxes_xyxy.tolist() == BOX and data.problems == ()


def test_a_comment_in_another_coding_is_reported(tmp_path: Path) -> None:
    root = write(tmp_path, "")
    (root / "train" / "labels" / "a.txt").write_bytes(b"caf\xe9\n" + LINE.encode())
    data = load_split(root, "train")
    assert data.num_boxes == 1 and [p.kind for p in data.problems] == ["broken annotation"]


def test_codings_of_the_head(tmp_path: Path) -> None:
    root = write(tmp_path, LINE)
    text = "train: train/images\nnames: [café, Hund]\n"
    for coding in ("utf-8-sig", "utf-16"):
        (root / "data.yaml").write_bytes(text.encode(coding))
        assert load_split(root, "train").names == ("café", "Hund")
    (root / "data.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"data\.yaml is not UTF-8 \(byte 0xe9 at 31\)"):
        load_split(root, "train")


@pytest.mark.parametrize("line", ["nan 0.5 0.5 .1 .1", "inf 0.5 0.5 .1 .1", "1 nan 0.5 .1 .1",
                                  "1 0.5 0.5 0_1 .1", "1.5 .5 .5 .1 .1"])  # fmt: skip
def test_what_is_no_number_is_reported(tmp_path: Path, line: str) -> None:
    data = load_split(write(tmp_path, f"{line}\n{LINE}"), "train")
    assert data.num_boxes == 1 and [p.kind for p in data.problems] == ["broken annotation"]


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images/train", "labels/train"), ("Images", "Labels"), ("image", "label"),
        ("IMAGES", "LABELS"), ("image", "labels"), ("train", "train"), ("imgs/x", "labels/x"),
    ],
)  # fmt: skip
def test_where_labels_are(tmp_path: Path, images: str, labels: str) -> None:
    """Below a folder called `images`, too: the last such folder is not always the one meant."""
    root = tmp_path / "images" / "set"
    for place in (images, labels):
        (root / place).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(root / images / "a.jpg"), np.full((40, 60, 3), 90, dtype=np.uint8))
    (root / labels / "a.txt").write_text(LINE)
    (root / "data.yaml").write_text(f"train: {images}\nnames: [a, b]\n")
    data = load_split(root, "train")
    assert data.records[0].boxes_xyxy.tolist() == BOX and data.problems == ()


def test_a_split_without_labels_is_reported(tmp_path: Path) -> None:
    root = write(tmp_path, LINE)
    (root / "train" / "labels" / "a.txt").unlink()
    data = load_split(root, "train")
    assert [p.kind for p in data.problems] == ["no labels"]
    assert "none of its 2 images has a label file" in data.problems[0].detail
    with pytest.raises(DataError, match="no box to train on"):
        check_trainable(data)


def test_an_empty_annotations_folder_hides_no_yaml(tmp_path: Path) -> None:
    root = write(tmp_path, LINE)
    (root / "annotations").mkdir()
    assert splits_of(root) == ("train", "val")


def test_a_split_of_missing_images_is_named(tmp_path: Path) -> None:
    root = write(tmp_path, LINE, train="list.txt")
    (root / "list.txt").write_text("gone.jpg\n")
    with pytest.raises(DataError, match=r"none of the images of train .* missing image .*gone.jpg"):
        load_split(root, "train")


def test_a_very_large_image_is_listed(tmp_path: Path) -> None:
    root = write(tmp_path, LINE)
    name = str(root / "train" / "images" / "a.jpg")
    Image.new("1", (20_000, 10_000)).save(name.replace(".jpg", ".png"))
    Path(name).unlink()
    assert load_split(root, "train").records[0].width == 20_000


@pytest.mark.parametrize("line", [".", "./", "images"])
def test_a_folder_in_a_list_means_its_images(line: str, tmp_path: Path) -> None:
    root = write(tmp_path, LINE, train="train/list.txt")
    (root / "train" / "list.txt").write_text(f"{line}\n")
    names = [record.path.name for record in load_split(root, "train").records]
    assert names == ["a.jpg", "b.png"]
