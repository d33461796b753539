"""COCO's JSON: the instances file, and the rows in which detections are scored."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np
import numpy.typing as npt


class CocoImage(TypedDict):
    """An image; sides in pixels."""

    id: int
    file_name: str
    width: int
    height: int


class CocoAnnotation(TypedDict):
    """An object of an image."""

    id: NotRequired[int]
    image_id: int
    category_id: int
    bbox: list[float]
    """x, y of the top left corner, width and height, in pixels."""
    area: NotRequired[float]
    """In square pixels, of the mask where there is one."""
    iscrowd: NotRequired[int]
    """1 for a region that holds many objects, else 0."""
    score: NotRequired[float]
    """Of a detection that a scorer takes as an annotation."""


class CocoCategory(TypedDict):
    """A class."""

    id: int
    name: str


class CocoFile(TypedDict):
    """An instances file."""

    info: NotRequired[Mapping[str, object]]
    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


class ResultRow(TypedDict):
    """A detection, as COCO's results list it; `bbox` as of an annotation."""

    image_id: int
    category_id: int
    bbox: list[float]
    score: float


@dataclass(frozen=True, slots=True)
class RawCoco:
    """The lists of an instances file before their values are checked."""

    images: Sequence[Mapping[str, object]]
    """Each has `id` and `file_name`."""
    annotations: Sequence[object]
    categories: Sequence[Mapping[str, object]]
    """Each has `id` and `name`."""


def to_bbox(box_xyxy: Iterable[float]) -> list[float]:
    """Return x, y, width and height of a box given by its corners."""
    x0, y0, x1, y1 = (float(side) for side in box_xyxy)
    return [x0, y0, x1 - x0, y1 - y0]


def boxes_of(rows: Sequence[ResultRow]) -> npt.NDArray[np.float64]:
    """Return the corners of the boxes of result rows, [N, 4]."""
    x, y, w, h = np.reshape(np.array([row["bbox"] for row in rows], np.float64), (-1, 4)).T
    return np.stack([x, y, x + w, y + h], axis=1)
