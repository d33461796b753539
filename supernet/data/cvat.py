"""Reads and writes CVAT's own format, "CVAT for images 1.1": one XML file, images beside it."""

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path

from ..atomic import write_text
from ..errors import DataError
from .annotations import Complain, number
from .coco_file import RawCoco
from .exported import Collected, Written, around, read_xml, split_name, turned
from .image_search import ImageSearch

NAME = "annotations.xml"
CORNERS = ("xtl", "ytl", "xbr", "ybr")


def read_cvat(path: Path, images: Path, complain: Complain) -> dict[str, RawCoco]:
    """Return the splits of an export; images lie in `images`, or below it."""
    root = read_xml(path)
    if root.tag != "annotations":
        raise DataError(f"{path}: <{root.tag}> is not CVAT's format, whose file has <annotations>")
    if root.find("track") is not None:
        raise DataError(
            f"{path} has the tracks of a video: export the task as 'CVAT for images 1.1', with its "
            "images"
        )
    found = Collected(ImageSearch(images), complain)
    found.names += [
        name.text.strip()
        for name in root.iterfind("meta//labels/label/name")
        if name.text and name.text.strip()
    ]
    found.names[:] = list(dict.fromkeys(found.names))
    for image in root.iterfind("image"):
        _read(image, found)
    return found.finish(path)


def _read(image: ET.Element, found: Collected) -> None:
    name = image.get("name", "")
    split = split_name(image.get("subset") or "")
    split = "" if split.lower() == "default" else split
    wh = (image.get("width"), image.get("height"))
    image_id = found.image(name, split, wh, name)
    if image_id is None:
        return
    for index, shape in enumerate(image):
        label = shape.get("label", "").strip()
        try:
            if shape.tag == "box":
                found.box(image_id, split, label, _box(shape))
            elif shape.tag == "polygon":
                found.box(image_id, split, label, around(_points(shape.get("points", ""))))
            else:
                found.no_box(shape.tag)
        except ValueError:
            found.complain("broken annotation", f"{name} shape {index}", "skipped")


def _box(shape: ET.Element) -> Iterable[float]:
    x0, y0, x1, y1 = (number(shape.get(side)) for side in CORNERS)
    corners = x0, y0, x1, y1
    degrees = number(shape.get("rotation", "0"))
    return turned(corners, degrees, ((x0 + x1) / 2, (y0 + y1) / 2)) if degrees else corners


def _points(text: str) -> list[tuple[float, float]]:
    pairs = [[number(side) for side in pair.split(",")] for pair in text.split(";") if pair]
    return [(x, y) for x, y in pairs]


def write_cvat(root: Path, written: Written) -> None:
    """Write `annotations.xml`; the name of an image is its path below `images/`."""
    top = ET.Element("annotations")
    ET.SubElement(top, "version").text = "1.1"
    labels = ET.SubElement(ET.SubElement(ET.SubElement(top, "meta"), "task"), "labels")
    for name in written.names:
        label = ET.SubElement(labels, "label")
        ET.SubElement(label, "name").text = name
        ET.SubElement(label, "attributes")
    number_of = 0
    for split, items in written.splits.items():
        for item in items:
            record = item.record
            image = ET.SubElement(
                top,
                "image",
                id=str(number_of),
                name=f"{split}/{item.name}",
                subset=split,
                width=str(record.width),
                height=str(record.height),
            )
            number_of += 1
            for box, index in zip(record.boxes_xyxy.tolist(), record.labels.tolist(), strict=True):
                facts = {"label": written.names[index], "source": "manual", "occluded": "0"}
                facts |= {key: f"{side:.2f}" for key, side in zip(CORNERS, box, strict=True)}
                ET.SubElement(image, "box", facts | {"z_order": "0"})
    ET.indent(top)
    write_text(root / NAME, ET.tostring(top, encoding="unicode") + "\n")
