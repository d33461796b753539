"""Sets annotated on the stored pixels of images that EXIF turns."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from supernet.data.check import image_problems
from supernet.data.coco import load_split
from supernet.data.detection_set import DetectionSet
from supernet.data.image_files import image_size
from supernet.data.upright import upright
from supernet.letterbox import read_image
from tests.command_line import run

BOX = (5, 4, 25, 14)
"""x0, y0, x1, y1 of a white rectangle on the stored 60x40 pixels."""


def stored_set(root: Path, orientations: tuple[int, ...]) -> DetectionSet:
    """A COCO set whose sizes and boxes are those before rotation."""
    (root / "train").mkdir(parents=True)
    images, annotations = [], []
    for number in orientations:
        pixels = np.zeros((40, 60, 3), np.uint8)
        x0, y0, x1, y1 = BOX
        pixels[y0:y1, x0:x1] = 255
        exif = Image.Exif()
        exif[0x0112] = number
        with Image.fromarray(pixels) as image:
            image.save(root / "train" / f"{number}.png", exif=exif)
        images.append({"id": number, "file_name": f"{number}.png", "width": 60, "height": 40})
        annotations.append(
            {"id": number, "image_id": number, "category_id": 1, "iscrowd": 0, "area": 200,
             "bbox": [x0, y0, x1 - x0, y1 - y0]}
        )  # fmt: skip
    file = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "rectangle"}],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train.json").write_text(json.dumps(file))
    return load_split(root, "train")


def seen(data: DetectionSet) -> list[list[int]]:
    """Where the rectangle is on the pixels that detection sees."""
    found = []
    for record in data.records:
        image = read_image(record.path)
        assert image is not None
        rows, columns = np.nonzero(image[:, :, 0] > 127)
        found.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return found


def test_boxes_are_turned_with_their_images(tmp_path: Path) -> None:
    data = stored_set(tmp_path, tuple(range(1, 9)))
    (turned,), stored = upright([data])
    assert stored == 4, "5 to 8 show it by their sizes"
    for record, box in zip(turned.records, seen(turned), strict=True):
        assert record.boxes_xyxy.tolist() == [box], record.path
        image = read_image(record.path, (record.height, record.width))
        assert image is not None and image.shape == read_image(record.path).shape  # type: ignore[union-attr]
    assert upright([turned])[1] == 0


def test_a_split_that_shows_nothing_is_as_the_others(tmp_path: Path) -> None:
    train, val = stored_set(tmp_path / "a", (6,)), stored_set(tmp_path / "b", (3,))
    (_, turned), _ = upright([train, val])
    assert turned.records[0].boxes_xyxy.tolist() == seen(val)


def test_sizes_that_show_nothing_are_taken_as_they_are(tmp_path: Path) -> None:
    data = stored_set(tmp_path, (1, 3))
    assert upright([data]) == ([data], 0) and image_problems(data) == []


@pytest.mark.parametrize("to", ["yolo", "coco", "label-studio"])
def test_converted_sets_lie_on_what_detection_sees(to: str, tmp_path: Path) -> None:
    """As YOLO, which states no size, the boxes lay elsewhere."""
    data = stored_set(tmp_path / "set", (1, 3, 6, 8))
    assert {problem.kind for problem in image_problems(data)} == {"annotated on stored pixels"}
    code, _, errors = run(
        "data", "convert", tmp_path / "set", tmp_path / "new", "--to", to, "--val", 0
    )
    assert code == 0 and "2 images are annotated on their stored pixels" in errors
    again = tmp_path / "new"
    if to == "label-studio":
        code, _, errors = run("data", "convert", again, tmp_path / "coco", "--val", 0)
        assert code == 0, errors
        again = tmp_path / "coco"
    found = load_split(again, "train")
    assert image_problems(found) == []
    for record, box in zip(found.records, seen(found), strict=True):
        assert record.boxes_xyxy[0].tolist() == pytest.approx(box, abs=0.01), record.path


def test_a_small_decoding_keeps_the_stored_orientation(tmp_path: Path) -> None:
    """Reduced eight times, 43x45 pixels are as large as 45x43."""
    pixels = np.zeros((43, 45, 3), np.uint8)
    pixels[:, :20] = 255  # the left is white
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.fromarray(pixels) as image:
        image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    for shrink in (1, 2, 8):
        found = read_image(tmp_path / "a.jpg", (43, 45), shrink)
        assert found is not None and found[:, 0].min() > 200 and found[:, -1].max() < 60, shrink


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_an_orientation_that_only_xmp_states_turns_nothing(suffix: str, tmp_path: Path) -> None:
    """Pillow takes it for EXIF's; no decoder turns by it."""
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    )
    path = tmp_path / f"a.{suffix}"
    how: dict[str, object] = {"xmp": xmp}
    if suffix == "png":
        text = PngInfo()
        text.add_itxt("XML:com.adobe.xmp", xmp.decode())
        how = {"pnginfo": text}
    elif suffix == "tif":
        how = {"tiffinfo": {700: xmp}}
    with Image.fromarray(np.zeros((40, 64, 3), np.uint8)) as image:
        image.save(path, **how)
    shown = read_image(path)
    assert shown is not None and image_size(path) == shown.shape[:2] == (40, 64)
