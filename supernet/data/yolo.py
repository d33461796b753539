"""Reads detection sets in YOLO format: `data.yaml`, and a text file of boxes beside each image.

A line is `class x y w h`, the centre and the sides as shares of the image, with or without a
confidence and a track id at its end. Where `data.yaml` has a `kpt_shape`, keypoints follow and are
left out; elsewhere longer lines are polygons, of which the box is taken (`yolo_lines.py`). The
result is the lists of a COCO file.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

from .annotations import Complain, number
from .coco_file import CocoAnnotation, CocoCategory, CocoImage, RawCoco
from .image_files import image_size
from .yolo_lines import SLACK, Box, Doubt, LineReader
from .yolo_yaml import Head, decode, read_head

LABELS_OF = {
    "images": "labels",
    "image": "label",
    "imgs": "labels",
    "img": "labels",
    "jpegimages": "labels",
}
"""Names of image folders, and of the label folders that belong to them."""


def yolo_file(root: Path) -> Path | None:
    """Return the `data.yaml` of a folder, if it has one and no COCO annotations."""
    if any((root / "annotations").glob("instances_*.json")):
        return None
    places = (root / "data.yaml", root / "data.yml")
    return next((place for place in places if place.is_file()), None)


def yolo_splits(path: Path) -> tuple[str, ...]:
    """Return the splits that a `data.yaml` names."""
    return tuple(read_head(path).splits)


def read_yolo(path: Path, split: str, complain: Complain) -> RawCoco:
    """Return a split as the lists of a COCO file; image files are absolute paths."""
    return read_labels(read_head(path), split, complain)


def read_labels(
    head: Head, split: str, complain: Complain, *, beside: Path | None = None
) -> RawCoco:
    """Return a split of a set whose classes and folders are known.

    Labels are where those of its images are, else in the folder `beside` or in its `labels`.
    """
    images: list[CocoImage] = []
    annotations: list[CocoAnnotation] = []
    labels, lines = _Labels(beside), LineReader(head.keypoint_values)
    doubts: list[tuple[int, tuple[int, int], int, Doubt, str]] = []
    seen: set[str] = set()
    for index, file in enumerate(head.images(split), 1):
        once = os.path.normpath(file)
        if once in seen:
            complain("image listed twice", once, "skipped")
            continue
        seen.add(once)
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
        for category, read, where in _boxes(label_file, head, lines, complain):
            if isinstance(read, Doubt):
                doubts.append((index, size, category, read, where))
            else:
                annotations.append(_absolute(read, size, index, category))
    for index, size, category, doubt, where in doubts:
        settled = lines.settle(doubt)
        if settled is not None:
            annotations.append(_absolute(settled, size, index, category))
        else:
            two = (
                "a tracked box or a triangle"
                if doubt.triangle is not None
                else "a polygon with a confidence, or one that lacks a number"
            )
            complain("broken annotation", where, f"{two}, skipped")
    if images and not labels.found:
        places = ", ".join(str(place) for place in labels.places(Path(images[0]["file_name"])))
        complain(
            "no labels",
            split,
            f"none of its {len(images)} images has a label file, looked for in {places}",
        )
    categories: list[CocoCategory] = [
        {"id": index, "name": name} for index, name in enumerate(head.names)
    ]
    return RawCoco(images, annotations, categories)


class _Labels:
    """Finds the label files of images: in the label folder, else beside the image."""

    def __init__(self, beside: Path | None = None) -> None:
        self.found = 0
        """Images that have a label file."""
        self._beside = _folders_below(beside) if beside is not None else []
        self._places: dict[Path, list[Path]] = {}

    def of(self, image: Path) -> Path | None:
        """Return the label file of an image; None for an image without objects."""
        for place in self.places(image):
            for suffix in ("txt", "TXT"):
                file = place / f"{image.stem}.{suffix}"
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
            self._places[folder] = [*found, folder, *self._beside]
        return self._places[folder]


def _folders_below(root: Path) -> list[Path]:
    """Return a folder, and its folder `labels` with all folders in it."""
    labels = root / "labels"
    below = sorted(path for path in labels.rglob("*") if path.is_dir()) if labels.is_dir() else []
    return [root, labels, *below]


def _label_folders(name: str) -> list[str]:
    """Return the names that the label folder of a folder of images may have."""
    known = LABELS_OF.get(name.lower())
    if known is None:
        return []
    names = dict.fromkeys((known, "labels", "label"))
    return [*names, *(n.capitalize() for n in names), *(n.upper() for n in names)]


def _boxes(
    file: Path, head: Head, lines: LineReader, complain: Complain
) -> Iterator[tuple[int, Box | Doubt, str]]:
    """Yield class, box and place of each usable line."""
    # Labels are digits: they can be read whatever the encoding of a comment is.
    text = decode(file.read_bytes(), file, errors="replace")
    for line_number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{file.name} line {line_number}"
        try:
            category, *values = (number(part) for part in line.split())
            read = lines.read(values)
            box = read.box if isinstance(read, Doubt) else read
            whole = category == int(category)
        except (ValueError, OverflowError):
            complain("broken annotation", where, "skipped")
            continue
        if not whole or not all(map(math.isfinite, box)):
            complain("broken annotation", where, "skipped")
        elif not 0 <= category < len(head.names):
            detail = f"class {category:g} of {len(head.names)}, skipped"
            complain("unknown class", where, detail)
        elif not all(-SLACK <= value <= 1 + SLACK for value in box):
            complain("not a share of the image", where, f"{list(box)}, skipped")
        else:
            yield int(category), read, where


def _absolute(box: Box, size_hw: tuple[int, int], image_id: int, category: int) -> CocoAnnotation:
    """Return a box as a COCO annotation."""
    (x, y, w, h), (height, width) = box, size_hw
    bbox = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
    return {"image_id": image_id, "category_id": category, "bbox": bbox}
