"""A decoded image and its objects: what loading returns, and what augmentation changes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..letterbox import Image, read_image
from .detection_set import Record

Corners = npt.NDArray[np.floating[Any]]
"""Boxes as x1, y1, x2, y2, [N, 4]."""


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image and its N objects; crowd regions are no objects."""

    pixels: Image
    """RGB, uint8 [height, width, 3]."""
    boxes_xyxy: Corners
    """Corners in pixels of `pixels`, [N, 4]: float32, between steps of augmentation float64."""
    labels: npt.NDArray[np.int64]
    """Class indices, [N]."""
    weights: npt.NDArray[np.float32] | None = None
    """How much each object counts, [N]; None for 1 each."""
    frame: npt.NDArray[np.float64] | None = None
    """Where the corners (0, 0) and (width, height) of the image, or of its crop, are after
    augmentation, [x1, y1, x2, y2]: x1 > x2 where it is mirrored. None before, for mosaics and
    where objects are pasted."""


def load_image(record: Record, shrink: int = 1) -> LabelledImage:
    """Decode an image of a detection set; `shrink` 2, 4 or 8 decodes it that many times smaller.

    A file of another size than the annotated one is treated as `read_image` states: the boxes are
    shares of the annotated size. Raises `DataError` for a file that cannot be decoded.
    """
    pixels = read_image(record.path, (record.height, record.width), shrink)
    if pixels is None:
        raise DataError(f"cannot decode {record.path}: see heat data check, or remove it")
    ratio = np.array(pixels.shape[1::-1]) / (record.width, record.height)
    boxes = record.boxes_xyxy * np.tile(ratio, 2).astype(np.float32)
    return LabelledImage(pixels, boxes, record.labels, record.weights)
