"""`heat data convert`: which images it takes, into which split, and under which name."""

import json
import shutil
from pathlib import Path

import pytest

from supernet.data.coco import load_split
from supernet.data.image_search import ImageSearch
from tests.command_line import fails
from tests.tool_exports import coco, converted, image

LINE = "1 0.175 0.4525 0.25 0.495\n"
NAMES = "names: [cat, dog]\n"


def labelled(image_file: Path, label: Path | None = None) -> None:
    """Write an image, and its label beside it or where it is said."""
    image(image_file)
    label = label or image_file.with_suffix(".txt")
    label.parent.mkdir(parents=True, exist_ok=True)
    label.write_text(LINE)


def test_images_outside_of_the_set_get_names_within(tmp_path: Path) -> None:
    """`..` in a name led out of the folder that was written."""
    for name in ("set/images/a.jpg", "more/images/b.jpg"):
        labelled(tmp_path / name)
    (tmp_path / "set/data.yaml").write_text(f"train: [images, ../more/images]\n{NAMES}")
    converted(tmp_path / "set", tmp_path / "out" / "deep" / "new", "--val", 0)
    names = {record.path.name for record in load_split(tmp_path / "out/deep/new", "train").records}
    assert names == {"a.jpg", "b.jpg"}
    written = json.loads((tmp_path / "out/deep/new/annotations/instances_train.json").read_text())
    assert all(".." not in each["file_name"] for each in written["images"])
    assert [path.name for path in (tmp_path / "out" / "deep").iterdir()] == ["new"]


@pytest.mark.parametrize("how", ["the file", "images", "another name"])
def test_the_splits_of_a_yolo_set_are_kept(how: str, tmp_path: Path) -> None:
    """They were joined, and divided at random."""
    for split, count in (("train", 3), ("val", 2)):
        for index in range(count):
            file = f"{split}/{index}.jpg"
            labelled(tmp_path / "images" / file, tmp_path / f"labels/{split}/{index}.txt")
    image(tmp_path / "images/val/2.jpg")  # without an object, as train/2.jpg has one
    yaml = tmp_path / ("coco8.yaml" if how == "another name" else "data.yaml")
    yaml.write_text(f"train: images/train\nval: images/val\n{NAMES}")
    source, more = (tmp_path, ["--images", tmp_path]) if how == "images" else (yaml, [])
    found = converted(source, tmp_path / "out", *more)
    assert found["splits"] == {
        "train": {"images": 3, "boxes": 3}, "val": {"images": 3, "boxes": 2},
    }  # fmt: skip


def test_subsets_of_darknet_are_splits(tmp_path: Path) -> None:
    """As CVAT exports a project; all but one of them were left out."""
    for folder in ("obj_train_data", "obj_valid_data"):
        for index in range(2):
            labelled(tmp_path / folder / f"{index}.jpg")
    (tmp_path / "obj.names").write_text("cat\ndog\n")
    found = converted(tmp_path, tmp_path / "out")
    two = {"images": 2, "boxes": 2}
    assert found["splits"] == {"train": two, "val": two}


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    """The second took the place of the first."""
    (tmp_path / "annotations").mkdir()
    for part in ("1", "2"):
        image(tmp_path / f"{part}.jpg")
        text = coco([f"{part}.jpg"])
        (tmp_path / "annotations" / f"instances_train_{part}.json").write_text(text)
    line = fails(2, "data", "convert", tmp_path, tmp_path / "out", "--images", tmp_path)
    assert "instances_train_1.json" in line and "instances_train_2.json" in line


def test_captions_beside_instances_are_passed_over(tmp_path: Path) -> None:
    """As the official COCO annotations have them."""
    (tmp_path / "annotations").mkdir()
    image(tmp_path / "photos" / "a.jpg")
    (tmp_path / "annotations" / "instances_val2017.json").write_text(coco(["a.jpg"]))
    captions = {"images": [], "annotations": [{"id": 1, "image_id": 1, "caption": "a dog"}]}
    (tmp_path / "annotations" / "captions_val2017.json").write_text(json.dumps(captions))
    found = converted(tmp_path, tmp_path / "out", "--images", tmp_path / "photos")
    assert found["splits"] == {"val": {"images": 1, "boxes": 1}}


def test_a_split_of_another_name_alone_is_divided(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for name in ("a.jpg", "b.jpg"):
        image(tmp_path / name)
    (tmp_path / "annotations" / "batch7.json").write_text(coco(["a.jpg", "b.jpg"]))
    found = converted(tmp_path, tmp_path / "out")
    assert set(found["splits"]) == {"train", "val"}  # type: ignore[call-overload]


def test_all_lists_of_a_short_task_are_read(tmp_path: Path) -> None:
    """Polygons alone, keypoints before rectangles: the first list with an x was taken."""
    rectangle = {"x": 5, "y": 20.5, "width": 25, "height": 49.5, "rectanglelabels": ["dog"]}
    polygon = {"points": [[2.5, 6], [25, 8], [10, 30]], "polygonlabels": ["cat"]}
    point = {"x": 1, "y": 1, "width": 0.5, "keypointlabels": ["eye"]}
    tasks = [
        {"image": "a.jpg", "id": 1, "shape": [polygon]},
        {"image": "b.jpg", "id": 2, "dot": [point], "label": [rectangle], "shape": [polygon]},
    ]
    for name in ("a.jpg", "b.jpg"):
        image(tmp_path / name)
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    found = converted(tmp_path / "tasks.json", tmp_path / "out", "--val", 0)
    assert found["names"] == ["cat", "dog"]
    assert found["splits"] == {"train": {"images": 2, "boxes": 3}}
    assert "keypoint" in str(found["problems"]) or "region" in str(found["problems"])


@pytest.mark.parametrize("kind", ["voc", "label-studio", "cvat", "yolo"])
def test_odd_names_come_back(kind: str, tmp_path: Path) -> None:
    """Blanks ended a name in VOC's lists, and URLs of tasks were not quoted."""
    names = ["my dog 0.jpg", "a+b.jpg", "50%25.jpg", "x&y.jpg", "q#1.jpg", "night 1.jpg"]
    for name in names:
        labelled(tmp_path / "set/images" / name)
    (tmp_path / "set/data.yaml").write_text(f"train: images\n{NAMES}")
    converted(tmp_path / "set", tmp_path / kind, "--to", kind, "--val", 0)
    back = converted(tmp_path / kind, tmp_path / "back", "--val", 0)
    assert back["splits"] == {"train": {"images": 6, "boxes": 6}} and back["problems"] == []
    found = {record.path.name for record in load_split(tmp_path / "back", "train").records}
    assert found == set(names)


def test_folders_of_voc_say_which_image_is_meant(tmp_path: Path) -> None:
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    for folder in ("a", "b"):
        image(tmp_path / "JPEGImages" / folder / "0.jpg")
        path = tmp_path / "Annotations" / folder / "0.xml"
        path.parent.mkdir(parents=True)
        objects = f"<object><name>{folder}</name>{box}</object>"
        path.write_text(f"<annotation><filename>0.jpg</filename>{objects}</annotation>")
    converted(tmp_path, tmp_path / "out", "--val", 0)
    data = load_split(tmp_path / "out", "train")
    pairs = {record.path.parent.name: data.names[int(record.labels[0])] for record in data.records}
    assert pairs == {"a": "a", "b": "b"}


def test_of_several_images_that_of_the_longest_path_is_found(tmp_path: Path) -> None:
    for name in ("1.jpg", "photos/b/1.jpg", "photos/c/1.jpg"):
        image(tmp_path / name)
    search = ImageSearch(tmp_path)
    assert search.find("b/1.jpg") == tmp_path / "photos/b/1.jpg"
    assert search.find("/elsewhere/photos/c/1.jpg") == tmp_path / "photos/c/1.jpg"
    assert search.find("/elsewhere/1.jpg") == tmp_path / "1.jpg"
    (tmp_path / "1.jpg").unlink()
    assert ImageSearch(tmp_path).find("x/1.jpg") is None, "either could be meant"
    shutil.rmtree(tmp_path / "photos/c")
    assert ImageSearch(tmp_path).find("x/1.jpg") == tmp_path / "photos/b/1.jpg"


def test_labels_elsewhere_are_those_of_their_split(tmp_path: Path) -> None:
    """Images of two splits have one name; one of them has no object."""
    labelled(tmp_path / "photos/images/train/0.jpg", tmp_path / "set/labels/train/0.txt")
    image(tmp_path / "photos/images/val/0.jpg")
    (tmp_path / "set/labels/val").mkdir()
    (tmp_path / "set/data.yaml").write_text(f"train: images/train\nval: images/val\n{NAMES}")
    found = converted(tmp_path / "set", tmp_path / "out", "--images", tmp_path / "photos")
    assert found["splits"] == {
        "train": {"images": 1, "boxes": 1}, "val": {"images": 1, "boxes": 0},
    }  # fmt: skip
