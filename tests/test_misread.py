"""Data that was once read as something else: understood, or reported as what it is."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from deploy.edge.pixels import as_pixels
from heat.views.tables import check_data
from supernet.data.check import image_problems
from supernet.data.coco import find_split, load_split
from supernet.errors import DataError, UserError
from supernet.heatdetr.input_size import parse_size
from supernet.letterbox import read_image

from .test_annotations import note
from .test_annotations import write as write_coco
from .test_yolo import BOX, LINE
from .test_yolo import write as write_yolo

RAMP = np.linspace(0, 4095, 60).round()
"""12 bits."""


@pytest.mark.parametrize("name", [None, ["cat"], "", " ", False, {}, 1.5])
def test_a_category_name_is_text(tmp_path: Path, name: Any) -> None:
    """They became classes called None, ['cat'] and so on."""
    head = {"categories": [{"id": 3, "name": name}]}
    with pytest.raises(DataError, match="every class needs a name as text, found"):
        load_split(write_coco(tmp_path, [note()], **head), "train")


def test_a_category_name_may_be_a_number(tmp_path: Path) -> None:
    head = {"categories": [{"id": 3, "name": 7}]}
    assert load_split(write_coco(tmp_path, [note()], **head), "train").names == ("7",)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("train: train/images\nnames: {0: cat, 1: dog, 1: bird}\n", "1"),
        ("train: train/images\ntrain: val/images\nnames: [a, b]\n", "train"),
    ],
)
def test_a_repeated_key_is_refused(tmp_path: Path, text: str, key: str) -> None:
    root = write_yolo(tmp_path, LINE)
    (root / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=f"the key {key} is repeated in line 2"):
        load_split(root, "train")


TRIANGLE, SQUARE = "0 .1 .1 .3 .1 .3 .5", "0 .1 .1 .3 .1 .3 .5 .1 .5"


@pytest.mark.parametrize(
    ("lines", "boxes", "broken"),
    [
        (["0 .5 .5 .2 .2 .9 2"], [[24, 16, 36, 24]], []),
        (["0 .5 .5 .2 .2 .9 1", "0 .5 .5 .2 .4 .8 7"], [[24, 12, 36, 28], [24, 16, 36, 24]], []),
        (["0 .5 .5 .2 .2 .9 1"], [], ["tracked box or a triangle"]),
        (["0 .5 .5 .2 .2 .9 1", SQUARE], [[6, 4, 18, 20], [12, 8, 54, 40]], []),
        (
            ["0 .5 .5 .2 .2 .9 1", SQUARE, "0 .5 .5 .2 .2 .9 2"],
            [[6, 4, 18, 20], [24, 16, 36, 24]],
            ["tracked box or a triangle"],
        ),
        (["0 .5 .5 .2 .2 5"], [[24, 16, 36, 24]], []),
        ([TRIANGLE, SQUARE[:-3]], [[6, 4, 18, 20]], ["lacks a number"]),
        ([SQUARE[:-3], TRIANGLE], [[6, 4, 18, 20]], ["lacks a number"]),
        (["1 .5 .5 .5 .25", SQUARE + " .7"], BOX, ["lacks a number"]),
        ([TRIANGLE + " .7", SQUARE + " .8"], [[6, 4, 18, 20]], []),
        ([TRIANGLE + " 7"], [], ["skipped"]),
    ],
)
def test_a_line_is_what_its_count_says(
    tmp_path: Path, lines: list[str], boxes: list[list[float]], broken: list[str]
) -> None:
    data = load_split(write_yolo(tmp_path, "\n".join(lines)), "train")
    found = [p for p in data.problems if p.kind != "duplicate box"]
    assert [p.kind for p in found] == ["broken annotation"] * len(broken)
    assert all(part in p.detail for part, p in zip(broken, found, strict=True))
    read = sorted(map(tuple, data.records[0].boxes_xyxy.round(3).tolist()))
    assert read == sorted(map(tuple, boxes))


@pytest.mark.parametrize("shape", [[2, 3], [1, 3], [2, 2], [1, 2]])
@pytest.mark.parametrize("tail", ["", " 0.8", " 0.8 4"])
def test_keypoints_may_have_a_confidence(tmp_path: Path, shape: list[int], tail: str) -> None:
    line = LINE.strip() + " 0.15" * (shape[0] * shape[1]) + tail
    data = load_split(write_yolo(tmp_path, line, kpt_shape=shape), "train")
    assert data.records[0].boxes_xyxy.tolist() == BOX and data.problems == ()


@pytest.mark.parametrize("bits", [12, 15])
def test_values_of_a_signed_file_are_scaled_as_unsigned_ones(tmp_path: Path, bits: int) -> None:
    ramp = np.linspace(0, 2**bits - 1, 60).round().astype(np.int16)
    ramp[0] = -30_000
    cv2.imwrite(str(tmp_path / "a.tif"), np.tile(ramp, (40, 1)))
    image = read_image(tmp_path / "a.tif")
    assert image is not None
    assert np.abs(image[0, :, 0] - np.linspace(0, 255, 60)).max() < 1.01


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("loaded", [False, True])
def test_a_pil_image_of_16_bit_colours_is_its_file(
    tmp_path: Path, suffix: str, loaded: bool
) -> None:
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), np.dstack([np.tile(RAMP, (40, 1)).astype(np.uint16)] * 3))
    with Image.open(path) as image:
        if loaded:
            image.load()
        assert np.array_equal(as_pixels(image), as_pixels(path))
        assert as_pixels(path).max() == 255
        image.thumbnail((20, 20))
        with pytest.raises(DataError, match=r"PIL kept only 8 of 16 bits of .*: give its path"):
            as_pixels(image)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_values_without_a_range_are_named(tmp_path: Path, kind: Any) -> None:
    root = write_coco(tmp_path, [note(), note(2)])
    for name in ("a.tif", "a.png"):
        Image.fromarray(np.tile(RAMP, (40, 1)).astype(kind)).save(
            root / "train" / name, format="TIFF"
        )
    message = f"its values are {np.dtype(kind)}, whose white is not stated"
    assert message in image_problems(load_split(root, "train"))[0].detail
    with pytest.raises(DataError, match=message):
        as_pixels(root / "train" / "a.tif")


def test_an_image_listed_twice_is_used_once(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "y", LINE, train="list.txt")
    (root / "list.txt").write_text("val/images/a.jpg\n./val/images/../images/a.jpg\n")
    data = load_split(root, "train")
    assert len(data.records) == data.num_boxes == 1
    assert [p.kind for p in data.problems] == ["image listed twice"]
    files = [
        {"id": i, "file_name": name, "width": width, "height": 100}
        for i, name, width in ((1, "a.png", 200), (2, "./a.png", 200), (3, "a.png", 400))
    ]
    notes = [note(), note(2, 7, bbox=[60, 5, 20, 20]), note(3, 7, bbox=[1, 1, 5, 5])]
    data = load_split(write_coco(tmp_path / "c", notes, images=files), "train")
    assert len(data.records) == 1 and data.num_boxes == 2
    assert [p.kind for p in data.problems] == ["image listed twice"] * 2
    assert "of another size, skipped" in data.problems[1].detail


def test_val_may_be_called_valid(tmp_path: Path) -> None:
    root = write_coco(tmp_path, [note()], "valid")
    assert find_split(root, "val") == "valid" and load_split(root, "val").num_boxes == 1
    write_coco(root, [note(), note(2)], "val")
    assert load_split(root, "val").num_boxes == 2


@pytest.mark.parametrize("size", [(64_000_000, 48_000_000), (200_000, 150_000)])
def test_a_stated_size_that_no_image_has_is_that_of_the_file(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    files = [{"id": 1, "file_name": "a.png", "width": size[0], "height": size[1]}]
    data = load_split(write_coco(tmp_path, [note()], images=files), "train")
    assert (data.records[0].width, data.records[0].height) == (200, 100)
    assert [p.kind for p in data.problems] == ["image size too large"]


def test_an_input_size_has_a_limit() -> None:
    assert parse_size("8192") == (8192, 8192)
    with pytest.raises(UserError, match="at most 8192 pixels a side"):
        parse_size("64000000x64000000")


def test_ids_of_text_are_compared_as_text(tmp_path: Path) -> None:
    files = [
        {"id": i, "file_name": name, "width": 200, "height": 100}
        for i, name in (("1e5", "a.png"), ("10e4", "b.png"))
    ]
    root = write_coco(tmp_path, [note("1e5"), note("1e5", 7), note("10e4")], images=files)
    data = load_split(root, "train")
    assert [len(r.labels) for r in data.records] == [2, 1] and data.problems == ()


POLYGON = [10, 20, 50, 20, 50, 50]


@pytest.mark.parametrize(
    "annotation",
    [
        note(iscrowd="false"),
        note(bbox=None, segmentation=POLYGON),
        note(bbox=[0, 0, 0, 0], segmentation=[POLYGON]),
        note(bbox=[0, 0, 0, 0], segmentation=POLYGON),
    ],
)
def test_annotations_as_other_programs_write_them(
    tmp_path: Path, annotation: dict[str, Any]
) -> None:
    data = load_split(write_coco(tmp_path, [annotation, note(2, iscrowd="True")]), "train")
    assert data.records[0].boxes_xyxy.tolist() == [[10, 20, 50, 50]] and data.problems == ()
    assert data.num_crowd == 1


@pytest.mark.parametrize("segmentation", [[], None, [POLYGON[:5], POLYGON[:5]], POLYGON[:5]])
def test_a_polygon_that_is_none_is_reported(tmp_path: Path, segmentation: Any) -> None:
    bad = note(bbox=None, segmentation=segmentation)
    data = load_split(write_coco(tmp_path, [bad, note(2)]), "train")
    assert [p.kind for p in data.problems] == ["broken annotation"]


@pytest.mark.parametrize(
    "content",
    [
        '"val/images/a.jpg"\n\'val/images/b.png\'\n', "val/images\n", "./val/images/\n",
        "val/images/a.jpg\rval/images/b.png\r",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["list.txt", "LIST.TXT"])
def test_lists_as_people_write_them(tmp_path: Path, content: str, name: str) -> None:
    root = write_yolo(tmp_path, LINE, train=name)
    (root / name).write_bytes(content.encode())
    data = load_split(root, "train")
    assert [r.path.name for r in data.records] == ["a.jpg", "b.png"] and data.problems == ()


@pytest.mark.parametrize("coding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_its_mark(tmp_path: Path, coding: str) -> None:
    root = write_yolo(tmp_path, "", train="list.txt")
    (root / "val" / "labels" / "a.txt").write_bytes(LINE.encode(coding))
    (root / "list.txt").write_bytes(b"val/images/a.jpg\n".decode().encode(coding))
    (root / "data.yaml").write_bytes("train: list.txt\nnames: [café, Hund]\n".encode(coding))
    data = load_split(root, "train")
    assert data.names[0] == "café" and data.records[0].boxes_xyxy.tolist() == BOX


@pytest.mark.parametrize("annotations", [[], [note(iscrowd=1)]])
def test_the_check_reports_what_training_refuses(
    tmp_path: Path, annotations: list[dict[str, Any]]
) -> None:
    root = write_coco(tmp_path, annotations)
    write_coco(root, [], "val")
    found = [(p["split"], p["kind"]) for p in check_data(root)["problems"]]
    assert found == [("train", "cannot be trained on")]
