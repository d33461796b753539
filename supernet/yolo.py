"""Reads detection sets in YOLO format: `data.yaml`, and a text file of boxes beside each image.

A line is `class x y w h`, the middle and the sides as shares of the picture; longer lines are
polygons, of which the box is taken. The result has the shape of COCO's annotation file.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from PIL import Image, UnidentifiedImageError

from .errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
TURNED = (5, 6, 7, 8)
"""EXIF orientations in which height and width change places."""
SLACK = 0.01
"""Boxes may leave the picture by this share."""

Complain = Callable[[str, str, str], None]
"""Takes the kind of a problem, where it is, and what is done about it."""


def yolo_file(root: Path) -> Path | None:
    """Return the `data.yaml` of a folder, if it has one and no COCO annotations."""
    if (root / "annotations").is_dir():
        return None
    places = (root / "data.yaml", root / "data.yml")
    return next((place for place in places if place.is_file()), None)


def yolo_splits(path: Path) -> tuple[str, ...]:
    """Return the splits that a `data.yaml` names."""
    head = _read_yaml(path)
    found = [key for key in ("train", "val", "valid", "test") if head.get(key)]
    return tuple(dict.fromkeys("val" if key == "valid" else key for key in found))


def read_yolo(path: Path, split: str, complain: Complain) -> dict[str, Any]:
    """Return a split in the shape of COCO's file; image files are absolute paths."""
    head = _read_yaml(path)
    names = _names(head, path)
    images, annotations = [], []
    for index, file in enumerate(_images(head, path, split), 1):
        size = _size(file)
        if size is None:
            complain("unreadable image", str(file), "skipped")
            continue
        width, height = size
        images.append({"id": index, "file_name": str(file), "width": width, "height": height})
        for category, x, y, w, h in _boxes(_label_file(file), len(names), complain):
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            annotations.append({"image_id": index, "category_id": category, "bbox": box})
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        head = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(head, dict) or "names" not in head:
        raise DataError(f"{path}: names needed (a list of classes), and train, val")
    return head


def _names(head: dict[str, Any], path: Path) -> list[str]:
    names = head["names"]
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise DataError(f"{path}: names must be numbered 0 to {len(names) - 1}")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: names must be a list of classes, found {names!r}")
    if head.get("nc", len(names)) != len(names):
        raise DataError(f"{path}: nc is {head['nc']}, but there are {len(names)} names")
    return [str(name) for name in names]


def _images(head: dict[str, Any], path: Path, split: str) -> list[Path]:
    """Return the image files of a split: of a folder, of several, or of a list in a file."""
    asked = head.get(split) or (head.get("valid") if split == "val" else None)
    found: list[Path] = []
    for item in asked if isinstance(asked, list) else [asked]:
        place = _place(str(item), head, path)
        if place.is_dir():
            found += sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES)
        elif place.suffix == ".txt" and place.is_file():
            lines = place.read_text(encoding="utf-8").split("\n")
            found += [place.parent / line.strip() for line in lines if line.strip()]
        else:
            raise DataError(f"{path}: {split} is {item}, and there is no {place}")
    return found


def _place(item: str, head: dict[str, Any], path: Path) -> Path:
    """Return where a split lies: below `path:`, if that exists here, or below the file itself.

    Exported sets say `../train/images` although the folder is beside `data.yaml`.
    """
    bases = [path.parent]
    if head.get("path"):
        bases.insert(0, path.parent / str(head["path"]))
    places = [base / text for base in bases for text in (item, item.removeprefix("../"))]
    return next((place for place in places if place.exists()), places[0])


def _size(file: Path) -> tuple[int, int] | None:
    """Return width and height as the picture is to be seen; only its head is read."""
    try:
        with Image.open(file) as image:
            turned = image.getexif().get(0x0112) in TURNED
            width, height = image.size
    except (OSError, UnidentifiedImageError):
        return None
    return (height, width) if turned else (width, height)


def _label_file(image: Path) -> Path:
    """Return the text file of an image: in `labels` where the image is in `images`."""
    parts = list(image.parts)
    for index in range(len(parts) - 1, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _boxes(
    file: Path, classes: int, complain: Complain
) -> list[tuple[int, float, float, float, float]]:
    """Return class, middle and sides of each usable line; no file means no objects."""
    if not file.is_file():
        return []
    found = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        where = f"{file.name} line {number}"
        try:
            category, *values = (float(part) for part in line.split())
        except ValueError:
            if line.strip():
                complain("broken annotation", where, "skipped")
            continue
        if len(values) >= 6 and len(values) % 2 == 0:
            xs, ys = values[::2], values[1::2]
            values = [
                (min(xs) + max(xs)) / 2,
                (min(ys) + max(ys)) / 2,
                max(xs) - min(xs),
                max(ys) - min(ys),
            ]
        if len(values) != 4 or category != int(category):
            complain("broken annotation", where, "skipped")
        elif not 0 <= category < classes:
            complain("unknown class", where, f"class {category:g} of {classes}, skipped")
        elif not all(-SLACK <= value <= 1 + SLACK for value in values):
            complain("not a share of the picture", where, f"{values}, skipped")
        else:
            x, y, w, h = values
            found.append((int(category), x, y, w, h))
    return found
