"""`heat data convert`: exports of labelling tools as they are written, and sets there and back."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from supernet.data.cells import make_cells
from supernet.data.coco import load_split
from supernet.data.detection_set import DetectionSet
from supernet.data.formats import WRITERS, format_of
from tests.command_line import fails
from tests.tool_exports import (
    coco,
    converted,
    image,
    write_cvat_export,
    write_tasks,
    write_voc_export,
)


def boxes_by_name(data: DetectionSet) -> dict[str, list[tuple[str, list[float]]]]:
    """Return class and corners of each image's boxes, in the order of the file."""
    return {
        record.path.name.removeprefix("train_").removeprefix("val_"): [
            (data.names[label], box)
            for box, label in zip(record.boxes_xyxy.tolist(), record.labels, strict=True)
        ]
        for record in data.records
    }


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cells") / "cells"
    make_cells(root, train=4, val=2, seed=3)
    return root


@pytest.mark.parametrize("kind", WRITERS)
def test_there_and_back(kind: str, cells: Path, tmp_path: Path) -> None:
    """Boxes, classes, splits and images survive; XML files keep two decimals of a pixel."""
    result = converted(cells, tmp_path / "there", "--to", kind)
    assert result["problems"] == [] and format_of(tmp_path / "there") == kind
    back = converted(tmp_path / "there", tmp_path / "back")
    assert back["from"] == kind and back["splits"] == result["splits"]
    for split in ("train", "val"):
        first, second = load_split(cells, split), load_split(tmp_path / "back", split)
        assert sorted(first.names) == sorted(second.names)
        expected, found = boxes_by_name(first), boxes_by_name(second)
        assert list(expected) == list(found)
        for name in expected:
            assert [c for c, _ in expected[name]] == [c for c, _ in found[name]]
            np.testing.assert_allclose(
                [box for _, box in expected[name]], [box for _, box in found[name]], atol=0.02
            )
        for record in second.records:
            here = next((tmp_path / "back" / split).rglob(record.path.name))
            assert here.read_bytes() == (cells / split / record.path.name).read_bytes()


DOG = ("dog", [10, 20.5, 60, 70])
EXPORTS: dict[str, tuple[Callable[[Path], None], str, list[tuple[str, list[float]]]]] = {
    "voc": (write_voc_export, "train", [DOG]),
    "cvat": (
        write_cvat_export,
        "val",
        [DOG, ("dog", [50, 30, 70, 70]), ("cat", [5, 6, 50, 30])],
    ),
    "label-studio": (
        write_tasks,
        "train",
        [DOG, ("dog", [70, 50, 100, 70]), ("cat", [5, 6, 50, 30])],
    ),
}


@pytest.mark.parametrize("kind", EXPORTS)
def test_exports_as_tools_write_them(kind: str, tmp_path: Path) -> None:
    write, split, expected = EXPORTS[kind]
    (tmp_path / "export").mkdir()
    write(tmp_path / "export")
    result = converted(tmp_path / "export", tmp_path / "set")
    assert result["from"] == kind
    data = load_split(tmp_path / "set", split)
    ((_, boxes),) = boxes_by_name(data).items()
    assert [name for name, _ in boxes] == [name for name, _ in expected]
    np.testing.assert_allclose([b for _, b in boxes], [b for _, b in expected], atol=0.01)


def test_what_has_no_box_is_named(tmp_path: Path) -> None:
    write_cvat_export(tmp_path)
    problems = converted(tmp_path, tmp_path / "set")["problems"]
    assert {
        "kind": "no box",
        "where": "annotations.xml",
        "detail": "1 of kind points, skipped",
    } in (problems if isinstance(problems, list) else [])


def test_short_json_of_label_studio(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    region = {"x": 5, "y": 20.5, "width": 25, "height": 49.5, "rectanglelabels": ["dog"],
              "original_width": 200, "original_height": 100}  # fmt: skip
    tasks = [{"image": "/data/local-files/?d=photos/a.jpg", "id": 1, "label": [region]}]
    (tmp_path / "min.json").write_text(json.dumps(tasks))
    converted(tmp_path / "min.json", tmp_path / "set")
    assert boxes_by_name(load_split(tmp_path / "set", "train")) == {"a.jpg": [DOG]}


def test_yolo_without_data_yaml(tmp_path: Path) -> None:
    """As Label Studio and CVAT export it."""
    image(tmp_path / "one/images/a.jpg")
    (tmp_path / "one/labels").mkdir()
    (tmp_path / "one/labels/a.txt").write_text("1 0.175 0.4525 0.25 0.495\n")
    (tmp_path / "one/classes.txt").write_text("cat\ndog\n")
    image(tmp_path / "two/obj_train_data/a.jpg")
    (tmp_path / "two/obj_train_data/a.txt").write_text("1 0.175 0.4525 0.25 0.495\n")
    (tmp_path / "two/obj.names").write_text("cat\ndog\n")
    for export in ("one", "two"):
        converted(tmp_path / export, tmp_path / f"set-{export}")
        data = load_split(tmp_path / f"set-{export}", "train")
        assert data.names == ("cat", "dog")
        ((_, [(name, box)]),) = boxes_by_name(data).items()
        assert name == "dog"
        np.testing.assert_allclose(box, DOG[1], atol=0.01)


def test_yolo_whose_images_are_elsewhere(tmp_path: Path) -> None:
    """With a data.yaml it was refused as one without; else all images had no box."""
    photos = tmp_path / "photos"
    for name in ("a", "b"):
        image(photos / f"{name}.jpg")
        for place in ("listed/labels", "described/labels/train", "beside"):
            file = tmp_path / place / f"{name}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("1 0.175 0.4525 0.25 0.495\n")
    (tmp_path / "listed/classes.txt").write_text("cat\ndog\n")
    (tmp_path / "beside/classes.txt").write_text("cat\ndog\n")
    (tmp_path / "described/data.yaml").write_text("train: images/train\nnames: [cat, dog]\n")
    for export in ("listed", "described", "beside"):
        result = converted(tmp_path / export, tmp_path / f"set-{export}", "--images", photos)
        one = {"images": 1, "boxes": 1}
        assert result["splits"] == {"train": one, "val": one}
        assert result["names"] == ["cat", "dog"] and result["problems"] == []
    shutil.rmtree(tmp_path / "listed/labels")
    line = fails(2, "data", "convert", tmp_path / "listed", tmp_path / "set", "--images", photos)
    assert "none of the 2 images" in line and "labels" in line


def test_coco_as_cvat_and_roboflow_export_it(tmp_path: Path) -> None:
    """All in one file with the images in a folder of their own; and a file within each split."""
    names = [f"{index}.jpg" for index in range(10)]
    for name in names:
        image(tmp_path / "cvat/images" / name)
    (tmp_path / "cvat/annotations").mkdir()
    (tmp_path / "cvat/annotations/instances_default.json").write_text(coco(names))
    result = converted(tmp_path / "cvat", tmp_path / "set", "--to", "yolo")
    assert result["splits"] == {
        "train": {"images": 8, "boxes": 1}, "val": {"images": 2, "boxes": 0}
    } and result["crowds_left_out"] == 1  # fmt: skip
    again = converted(tmp_path / "cvat", tmp_path / "again", "--seed", 1, "--val", 0.5)
    assert again["splits"]["val"]["images"] == 5  # type: ignore[index]
    assert (
        load_split(tmp_path / "again", "train").num_crowd
        + (load_split(tmp_path / "again", "val").num_crowd)
        == 1
    )
    for split in ("train", "valid"):
        image(tmp_path / "robo" / split / "0.jpg")
        (tmp_path / "robo" / split / "_annotations.coco.json").write_text(coco(["0.jpg"]))
    result = converted(tmp_path / "robo", tmp_path / "from-robo")
    assert result["splits"] == {
        "train": {"images": 1, "boxes": 1},
        "val": {"images": 1, "boxes": 1},
    }


def test_requests_that_cannot_be_served(tmp_path: Path, cells: Path) -> None:
    assert "no export at" in fails(2, "data", "convert", tmp_path / "none", tmp_path / "set")
    (tmp_path / "empty").mkdir()
    assert "no export that is known" in fails(2, "data", "convert", tmp_path / "empty", "set")
    full = "is there already and not empty"
    assert full in fails(2, "data", "convert", cells, cells)
    assert "--val 1" in fails(2, "data", "convert", cells, tmp_path / "set", "--val", 1)
    video = tmp_path / "video.xml"
    video.write_text("<annotations><track id='0' label='cat'/></annotations>")
    assert "CVAT for images" in fails(2, "data", "convert", video, tmp_path / "set")
    video.write_text("<annotations><image")
    assert "not valid XML" in fails(2, "data", "convert", video, tmp_path / "set")
    write_tasks(tmp_path)
    missing = tmp_path / "elsewhere"
    missing.mkdir()
    tasks = tmp_path / "project-1.json"
    line = fails(2, "data", "convert", tasks, tmp_path / "set", "--images", missing)
    assert "none of its images was found" in line and "--images" in line
    assert not (tmp_path / "set").exists()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_values_that_no_format_can_hold(tmp_path: Path) -> None:
    """NaN is a broken annotation; of a name, what UTF-8 has no bytes for is replaced."""
    write_tasks(tmp_path)
    tasks = tmp_path / "project-1.json"
    text = tasks.read_text()
    tasks.write_text(text.replace('"x": 5,', '"x": NaN,'))
    result = converted(tasks, tmp_path / "set")
    assert result["splits"] == {"train": {"images": 1, "boxes": 2}}
    assert "broken annotation" in str(result["problems"])
    tasks.write_text(text.replace('"dog"', '"\\ud800"'))
    names = converted(tasks, tmp_path / "other", "--to", "cvat")["names"]
    assert names == ["cat", "\N{REPLACEMENT CHARACTER}"]


def test_names_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    from supernet.data.image_search import ImageSearch

    image(tmp_path / "secret.jpg")
    image(tmp_path / "set" / "a.jpg")
    search = ImageSearch(tmp_path / "set")
    assert (
        search.find("../secret.jpg") is None and search.find(str(tmp_path / "secret.jpg")) is None
    )
    assert search.find("C:\\other\\machine\\a.jpg") == tmp_path / "set" / "a.jpg"
