"""Matches detections with objects: best first, each with the free object that it overlaps most."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..boxes import iou_matrix
from .detection_set import Crowd

Boxes = npt.NDArray[np.float64]
"""Corners in pixels of the stored image, [N, 4]."""


def greedy_match(iou_NM: npt.NDArray[Any], least: float) -> npt.NDArray[np.int64]:
    """Return the object of each detection [N], -1 for none, by an IoU of `least` or more.

    Detections come in the order of their turns; each object is taken once.
    """
    free = np.ones(iou_NM.shape[1], dtype=bool)
    taken = np.full(len(iou_NM), -1, dtype=np.int64)
    for index in np.flatnonzero((iou_NM >= least).any(axis=1)):
        overlaps = iou_NM[index] * free
        best = int(overlaps.argmax())
        if overlaps[best] >= least:
            taken[index], free[best] = best, False
    return taken


def ious(a_N4: Boxes, b_M4: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return the IoU of every pair, [N, M]."""
    found: npt.NDArray[np.float64] = iou_matrix(
        torch.from_numpy(a_N4), torch.from_numpy(b_M4.astype(np.float64))
    ).numpy()
    return found


def in_crowds(boxes_N4: Boxes, crowds: Iterable[Crowd], least: float) -> npt.NDArray[np.bool_]:
    """Return whether a share of `least` of each detection [N] lies in one of the crowd regions."""
    crowds_C4 = np.array([crowd.box_xyxy for crowd in crowds], np.float64).reshape(-1, 4)
    return np.asarray((shares_within(boxes_N4, crowds_C4) >= least).any(axis=1), np.bool_)


def shares_within(
    a_N4: npt.NDArray[np.floating[Any]], b_M4: npt.NDArray[Any]
) -> npt.NDArray[np.floating[Any]]:
    """Return the share of each of `a` that lies in each of `b`, [N, M]."""
    low = np.maximum(a_N4[:, None, :2], b_M4[None, :, :2])
    high = np.minimum(a_N4[:, None, 2:], b_M4[None, :, 2:])
    sides = np.maximum(a_N4[:, 2:] - a_N4[:, :2], 0)
    shared = np.maximum(high - low, 0).prod(axis=2)
    found: npt.NDArray[np.floating[Any]] = shared / np.maximum(sides.prod(axis=1), 1e-9)[:, None]
    return found
