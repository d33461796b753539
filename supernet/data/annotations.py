"""Annotations as plain values: every field is checked and converted once, for all uses.

Training, checks and scoring use the same boxes. A number written as text is a number; any other
value is reported and its annotation skipped. Nothing is skipped silently.
"""

import math
import re
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .masks import mask_box, mask_size

Complain = Callable[[str, str, str], None]
"""Reports a problem: its kind, where it is, and what is done about it."""

LARGEST_ID = 2**53
"""Larger ids are treated as names: the scorers keep ids as floating-point numbers."""
DIGITS = re.compile("[+-]?[0-9]+")
"""Other texts that are numbers, such as 1e5 and 10e4, are different names."""
LEAVES_PX = 1.0
"""A box that leaves its image by no more is clipped without a report."""


@dataclass(frozen=True, slots=True)
class Objects:
    """All usable boxes of a split, sorted by image; `of[i]` is the slice of the image i."""

    boxes_M4: npt.NDArray[np.float32]
    """Corners in pixels, clipped to the image."""
    labels_M: npt.NDArray[np.int64]
    """Class indices."""
    areas_M: npt.NDArray[np.float64]
    """Areas in square pixels, of the mask where that is annotated."""
    crowd_M: npt.NDArray[np.bool_]
    of: tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class _Columns:
    """Boxes as annotated, one column for each property, all of length M."""

    images_M: npt.NDArray[np.int64]
    """Index of the image."""
    labels_M: npt.NDArray[np.int64]
    boxes_M4: npt.NDArray[np.float64]
    """Corners in pixels, not clipped."""
    areas_M: npt.NDArray[np.float64]
    """Areas in square pixels; NaN where none is stated."""
    crowd_M: npt.NDArray[np.bool_]

    def sorted_by_image(self) -> "_Columns":
        """Return the boxes image by image, those of one image in the order of the file."""
        order = np.argsort(self.images_M, kind="stable")
        return _Columns(
            self.images_M[order],
            self.labels_M[order],
            self.boxes_M4[order],
            self.areas_M[order],
            self.crowd_M[order],
        )


def number(value: object) -> float:
    """Return a number, also of text; raise `ValueError` for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(value) from None
    if isinstance(value, str) and "_" not in value:
        return float(value)
    raise ValueError(value)


def whole(value: object) -> int:
    """Return a whole number, also of text or of 3.0; raise `ValueError` for anything else."""
    if isinstance(value, str) and DIGITS.fullmatch(value.strip()):
        value = int(value)  # as a floating-point number, long ones would become others
    found = value if type(value) is int else number(value)
    if not abs(found) <= LARGEST_ID or found != int(found):  # NaN is not smaller either
        raise ValueError(value)
    return int(found)


def flag(value: object) -> bool:
    """Return whether `iscrowd` is set: 0, 1, true, false, the texts of these, or nothing."""
    if value is None or value == "":
        return False
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    return value if isinstance(value, bool) else bool(whole(value))


def read_objects(
    annotations: Sequence[object],
    image_of: Mapping[int | str, int | None],
    sizes_hw: npt.NDArray[np.float64],
    files: Sequence[str],
    class_of: Mapping[int, int],
    where: str,
    complain: Complain,
) -> Objects:
    """Return the usable boxes of COCO annotations.

    `image_of` gives the index of an image by its id, None for one that is left out; `files` name
    the images in reports, `where` the annotation file.
    """
    images, labels, crowds = array("q"), array("q"), array("b")
    boxes, areas = array("d"), array("d")
    for index, raw in enumerate(annotations):
        try:
            item = _mapping(raw)
            key = image_key(item["image_id"])
            category, crowd = whole(item["category_id"]), flag(item.get("iscrowd"))
            x, y, w, h = box_of(item)
        except (KeyError, TypeError, ValueError, AttributeError):
            complain("broken annotation", f"{where} annotations[{index}]", "skipped")
            continue
        if key not in image_of:
            complain("unknown image", f"{where} annotations[{index}]", f"image_id {key}, skipped")
        elif category not in class_of:
            detail = f"category {category}, skipped"
            complain("unknown class", f"{where} annotations[{index}]", detail)
        elif not (w > 0 and h > 0 and math.isfinite(x + y + w + h)):
            detail = f"{[x, y, w, h]}, skipped"
            complain("degenerate box", f"{where} annotations[{index}]", detail)
        elif (place := image_of[key]) is not None and not _fits(item, sizes_hw, place):
            height, width = mask_size(_mapping(item["segmentation"]))
            detail = f"{width}x{height}, its image is not: skipped"
            complain("mask of another size", f"{where} annotations[{index}]", detail)
        elif place is not None:
            images.append(place)
            labels.append(class_of[category])
            crowds.append(crowd)
            boxes.extend((x, y, x + w, y + h))
            areas.append(_area(item.get("area")))
    found = _Columns(
        np.asarray(images, np.int64),
        np.asarray(labels, np.int64),
        np.asarray(boxes, np.float64).reshape(-1, 4),
        np.asarray(areas, np.float64),
        np.asarray(crowds, np.int8).astype(bool),
    )
    return _clipped(found.sorted_by_image(), sizes_hw, files, complain)


def image_key(value: object) -> int | str:
    """Return an image id: a number, also of text in plain digits, else the text itself."""
    if isinstance(value, str) and not DIGITS.fullmatch(value.strip()):
        return value
    try:
        return whole(value)
    except ValueError:
        if isinstance(value, str | int) and not isinstance(value, bool):
            return str(value)
        raise


def has_box(item: Mapping[str, object]) -> bool:
    """Return whether an annotation states its box; four zeros beside a mask are none."""
    box = item.get("bbox")
    return bool(box) and (not isinstance(box, list) or any(box) or not item.get("segmentation"))


def box_of(item: Mapping[str, object]) -> tuple[float, float, float, float]:
    """Return x, y, width and height of an annotation: of its mask where it has no `bbox`."""
    if has_box(item):
        box = item["bbox"]
        if not isinstance(box, list):
            raise ValueError(box)
        x, y, w, h = box
        return number(x), number(y), number(w), number(h)
    segmentation = item["segmentation"]
    if isinstance(segmentation, dict):
        return mask_box(segmentation)
    if not isinstance(segmentation, Iterable):
        raise TypeError(segmentation)
    flat = not any(isinstance(part, list) for part in segmentation)
    # One polygon may come without its list.
    polygons: Iterable[Any] = [segmentation] if flat else segmentation
    points = [number(value) for polygon in polygons for value in polygon]
    if len(points) < 6 or any(len(polygon) % 2 for polygon in polygons):
        raise ValueError(item)
    xs, ys = points[::2], points[1::2]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def _fits(item: Mapping[str, object], sizes_hw: npt.NDArray[np.float64], image: int) -> bool:
    """Return whether a box is in pixels of its image, not of a mask of another size."""
    mask = item.get("segmentation")
    if has_box(item) or not isinstance(mask, dict):
        return True
    return mask_size(mask) == tuple(sizes_hw[image])


def _mapping(value: object) -> Mapping[str, object]:
    """Return a JSON object; raise `TypeError` for anything else."""
    if not isinstance(value, dict):
        raise TypeError(value)
    return value


def _area(value: object) -> float:
    """Return a stated area in square pixels; NaN where none is stated."""
    try:
        area = number(value)
    except ValueError:
        return math.nan
    return area if 0 < area < math.inf else math.nan


def _clipped(
    found: _Columns, sizes_hw: npt.NDArray[np.float64], files: Sequence[str], complain: Complain
) -> Objects:
    """Clip boxes to their images; leave out those outside, and the second of two equal ones."""
    images, boxes = found.images_M, found.boxes_M4
    limits = np.tile(sizes_hw[images][:, ::-1], 2)
    inside = np.clip(boxes, 0, limits).astype(np.float32)
    sides = inside[:, 2:] - inside[:, :2]
    outside = sides.min(axis=1, initial=np.inf) <= 0
    leaves = (np.abs(inside - boxes).max(axis=1, initial=0) > LEAVES_PX) & ~outside
    again = _repeated(found, inside) & ~outside
    for kind, which, what in (
        ("box outside the image", outside, "skipped"),
        ("box leaves the image", leaves, "clipped"),
        ("duplicate box", again, "skipped"),
    ):
        for index in np.flatnonzero(which):
            box = [round(float(value), 2) for value in boxes[index]]
            complain(kind, files[images[index]], f"{box}, {what}")
    keep = ~outside & ~again
    own = sides.astype(np.float64).prod(axis=1)
    stated = found.areas_M
    areas = np.where(leaves, np.fmin(stated, own), np.where(np.isnan(stated), own, stated))
    counts = np.bincount(images[keep], minlength=len(sizes_hw))
    ends = np.cumsum(counts)
    of = tuple(slice(int(end - count), int(end)) for end, count in zip(ends, counts, strict=True))
    return Objects(inside[keep], found.labels_M[keep], areas[keep], found.crowd_M[keep], of)


def _repeated(found: _Columns, clipped_M4: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return which boxes equal, when clipped, an earlier one of the same image and class."""
    columns = (*clipped_M4.T, found.crowd_M, found.labels_M, found.images_M)
    order = np.lexsort(columns)
    same = np.ones(len(order), dtype=bool)
    same[:1] = False
    for column in columns:
        ordered = column[order]
        same[1:] &= ordered[1:] == ordered[:-1]
    repeated = np.zeros(len(order), dtype=bool)
    repeated[order] = same
    return repeated


def look_like_corners(
    annotations: Sequence[object],
    sizes_hw: Mapping[int | str, tuple[float, float]],
    enough: int,
) -> str | None:
    """Return an error message where boxes are corners (x1, y1, x2, y2), not x, y, width, height.

    Read as widths, many of them would leave their images; read as corners, none does. Fewer than
    `enough` boxes are not judged.
    """
    outside = total = 0
    for raw in annotations:
        try:
            item = _mapping(raw)
            box = item.get("bbox")
            if not has_box(item):
                continue
            if not isinstance(box, Iterable):
                raise TypeError(box)
            x, y, w, h = (number(value) for value in box)
            height, width = sizes_hw[image_key(item["image_id"])]
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
        if not (x < w <= width + 1 and y < h <= height + 1):
            return None
        total += 1
        outside += x + w > width + 1 or y + h > height + 1
    if total < enough or outside <= total / 4:
        return None
    return (
        f"boxes look like corners (x1, y1, x2, y2), {outside} of {total} would leave their "
        "images; COCO's bbox is (x, y, width, height)"
    )
