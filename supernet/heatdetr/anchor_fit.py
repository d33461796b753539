"""How well a network's anchors fit the objects of a detection set, before anything is trained."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.detection_set import DetectionSet
from ..letterbox import scale_to_fit
from .architecture import Architecture

FITTING = 0.5
"""Least IoU of an anchor that fits a box: below it the network must learn large corrections."""
SMALL_PX, LARGE_PX = 32, 96
"""COCO's bounds of small and large objects, as sides of squares, at the network's input size."""


@dataclass(frozen=True, slots=True)
class AnchorFit:
    """Boxes of a set, and those that no anchor fits, at an input size and an output stride."""

    stride: int
    boxes: int
    unfit: int
    """Boxes without an anchor of IoU >= `FITTING`."""
    unfit_by_size: dict[str, tuple[int, int]]
    """Unfit boxes and all boxes: small, medium and large ones at the input size."""

    @property
    def share(self) -> float:
        """Share of the boxes that no anchor fits."""
        return self.unfit / self.boxes if self.boxes else 0.0


def anchor_fit(
    data: DetectionSet, input_hw: tuple[int, int], architecture: Architecture
) -> AnchorFit:
    """Return how many boxes a network's anchors fit, with images letterboxed to `input_hw`."""
    scaled = [
        record.boxes_xyxy * scale_to_fit((record.height, record.width), input_hw)
        for record in data.records
        if len(record.boxes_xyxy)
    ]
    boxes = np.concatenate(scaled) if scaled else np.zeros((0, 4), np.float32)
    unfit = best_iou(boxes, input_hw, architecture) < FITTING
    side = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    by_size = {
        "small": side < SMALL_PX,
        "medium": (side >= SMALL_PX) & (side < LARGE_PX),
        "large": side >= LARGE_PX,
    }
    return AnchorFit(
        architecture.output_stride,
        len(boxes),
        int(unfit.sum()),
        {name: (int((unfit & here).sum()), int(here.sum())) for name, here in by_size.items()},
    )


def best_iou(
    boxes_xyxy: npt.NDArray[Any], input_hw: tuple[int, int], architecture: Architecture
) -> npt.NDArray[np.float64]:
    """Return each box's IoU with the anchor that fits it best, [N].

    Of anchors of one side the one whose centre is nearest in x and in y overlaps most.
    """
    stride, offset = architecture.output_stride, architecture.anchor_offset
    centres = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    cells = np.array(input_hw[::-1]) // stride
    nearest = np.clip(np.rint(centres / stride - offset), 0, cells - 1)
    places = (nearest + offset) * stride
    area = np.prod(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], axis=1)
    best = np.zeros(len(boxes_xyxy))
    for side in architecture.anchor_sizes:
        low = np.maximum(boxes_xyxy[:, :2], places - side / 2)
        high = np.minimum(boxes_xyxy[:, 2:], places + side / 2)
        shared = np.prod((high - low).clip(0), axis=1)
        best = np.maximum(best, shared / np.maximum(area + side**2 - shared, 1e-9))
    return best
