"""Reads detection sets in YOLO format: `data.yaml`, and a text file of boxes beside each image.

A line is `class x y w h`, the centre and the sides as shares of the image, with or without a
confidence at its end. Where `data.yaml` has a `kpt_shape`, keypoints follow and are left out;
elsewhere longer lines are polygons, of which the box is taken. The result has the shape of COCO's
annotation file.
"""

import math
from pathlib import Path
from typing import Any

from .annotations import Complain, number
from .image_files import image_size
from .yolo_yaml import Head, decode, read_head

SLACK = 0.01
"""Boxes may leave the image by this share."""
LABELS_OF = {
    "images": "labels",
    "image": "label",
    "imgs": "labels",
    "img": "labels",
    "jpegimages": "labels",
}
"""Folders of images, and what those of their labels are called."""


def yolo_file(root: Path) -> Path | None:
    """Return the `data.yaml` of a folder, if it has one and no COCO annotations."""
    if any((root / "annotations").glob("instances_*.json")):
        return None
    places = (root / "data.yaml", root / "data.yml")
    return next((place for place in places if place.is_file()), None)


def yolo_splits(path: Path) -> tuple[str, ...]:
    """Return the splits that a `data.yaml` names."""
    return tuple(read_head(path).splits)


def read_yolo(path: Path, split: str, complain: Complain) -> dict[str, Any]:
    """Return a split in the shape of COCO's file; image files are absolute paths."""
    head = read_head(path)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    labels = _Labels()
    for index, file in enumerate(head.images(split), 1):
        size = image_size(file)
        if size is None:
            kind = "unreadable image" if file.is_file() else "missing image"
            complain(kind, str(file), "skipped")
            continue
        height, width = size
        images.append({"id": index, "file_name": str(file), "width": width, "height": height})
        label_file = labels.of(file)
        if label_file is None:
            continue
        for category, x, y, w, h in _boxes(label_file, head, complain):
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            annotations.append({"image_id": index, "category_id": category, "bbox": box})
    if images and not labels.found:
        places = ", ".join(str(place) for place in labels.places(Path(images[0]["file_name"])))
        complain(
            "no labels",
            split,
            f"none of its {len(images)} images has a label file, looked for in {places}",
        )
    categories = [{"id": index, "name": name} for index, name in enumerate(head.names)]
    return {"images": images, "annotations": annotations, "categories": categories}


class _Labels:
    """Finds the label files of images: in the folder of labels, else beside the image."""

    def __init__(self) -> None:
        self.found = 0
        """Images that had one."""
        self._places: dict[Path, list[Path]] = {}

    def of(self, image: Path) -> Path | None:
        """Return the label file of an image; None for an image without objects."""
        for place in self.places(image):
            file = place / f"{image.stem}.txt"
            if file.is_file():
                self.found += 1
                return file
        return None

    def places(self, image: Path) -> list[Path]:
        """Return where labels may be: `labels` for the last folder called `images`, and so on."""
        folder = image.parent
        if folder not in self._places:
            found = []
            for index in range(len(folder.parts) - 1, -1, -1):
                for name in _label_folders(folder.parts[index]):
                    place = Path(*folder.parts[:index], name, *folder.parts[index + 1 :])
                    if place.is_dir():
                        found.append(place)
            self._places[folder] = [*found, folder]
        return self._places[folder]


def _label_folders(name: str) -> list[str]:
    """Return what the folder of labels may be called beside a folder of images."""
    known = LABELS_OF.get(name.lower())
    if known is None:
        return []
    names = dict.fromkeys((known, "labels", "label"))
    return [*names, *(n.capitalize() for n in names), *(n.upper() for n in names)]


def _boxes(
    file: Path, head: Head, complain: Complain
) -> list[tuple[int, float, float, float, float]]:
    """Return class, centre and sides of each usable line."""
    found = []
    # A label is digits: whatever the coding of a comment may be, they are read.
    text = decode(file.read_bytes(), file, errors="replace")
    for line_number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{file.name} line {line_number}"
        try:
            category, *values = (number(part) for part in line.split())
            x, y, w, h = _one_box(values, head.keypoint_values)
            whole = category == int(category)
        except (ValueError, OverflowError):
            complain("broken annotation", where, "skipped")
            continue
        if not whole or not all(map(math.isfinite, (x, y, w, h))):
            complain("broken annotation", where, "skipped")
        elif not 0 <= category < len(head.names):
            detail = f"class {category:g} of {len(head.names)}, skipped"
            complain("unknown class", where, detail)
        elif not all(-SLACK <= value <= 1 + SLACK for value in (x, y, w, h)):
            complain("not a share of the image", where, f"{[x, y, w, h]}, skipped")
        else:
            found.append((int(category), x, y, w, h))
    return found


def _one_box(values: list[float], keypoint_values: int) -> tuple[float, float, float, float]:
    """Return the box that the numbers after the class are; raise `ValueError` where none is."""
    if keypoint_values and len(values) == 4 + keypoint_values:
        values = values[:4]
    elif len(values) >= 5 and len(values) % 2 and 0 <= values[-1] <= 1:
        values = values[:-1]  # a confidence
    if len(values) == 4:
        x, y, w, h = values
        return x, y, w, h
    if keypoint_values or len(values) < 6 or len(values) % 2:
        raise ValueError(values)
    xs, ys = values[::2], values[1::2]
    low, high = (min(xs), min(ys)), (max(xs), max(ys))
    return (low[0] + high[0]) / 2, (low[1] + high[1]) / 2, high[0] - low[0], high[1] - low[1]
