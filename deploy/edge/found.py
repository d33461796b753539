"""The objects found on an image, and the interface of what finds them.

Needs numpy only; every bundle's `detect.py` carries this file's text.
"""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .card import Card
from .postprocess import suppressed
from .records import FoundRecord
from .score_limits import Limits

ONCE_IOU = 0.4
"""IoU above which two boxes are shown as one object, whatever their classes."""


@dataclass(frozen=True)
class Found:
    """Objects of one image, best first."""

    boxes_xyxy_px: npt.NDArray[np.float32]
    """Corners in pixels of the image, [n, 4]."""
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    latency_ms: float
    """Time of the model itself: normalisation, network, and decoding and NMS if in the graph."""
    preprocess_ms: float = 0.0
    """Time of the resize."""
    postprocess_ms: float = 0.0
    """Time of what follows the model: boxes to the image, and decoding and NMS of a raw model."""
    ids: npt.NDArray[np.int64] | None = None
    """Numbers of the objects that are tracked through a video."""

    def above(self, least: float | Limits) -> "Found":
        """Keep the objects of at least this score, or of that of their class."""
        return self.at(
            self.scores >= (least[self.labels] if isinstance(least, np.ndarray) else least)
        )

    def at(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> "Found":
        """Keep the objects of these rows: their numbers, or a mask."""
        return replace(
            self,
            boxes_xyxy_px=self.boxes_xyxy_px[rows],
            scores=self.scores[rows],
            labels=self.labels[rows],
            ids=None if self.ids is None else self.ids[rows],
        )

    def once(self, limits: float | Limits = 0.0) -> "Found":
        """Keep one box of each object: none overlaps a better one, of any class, above `ONCE_IOU`.

        Boxes that reach the lowest score of their class in `limits` are better than those that do
        not; else the score decides.
        """
        rows = once(self.boxes_xyxy_px, self.scores, self.labels, limits)
        return self.at(rows[np.argsort(-self.scores[rows], kind="stable")])

    def record(self, names: list[str]) -> FoundRecord:
        """Return the objects for JSON."""
        record: FoundRecord = {
            "boxes_xyxy_px": [[round(float(v), 2) for v in b] for b in self.boxes_xyxy_px],
            "scores": [round(float(value), 4) for value in self.scores],
            "names": [names[int(label)] for label in self.labels],
            "latency_ms": round(self.latency_ms, 3),
        }
        if self.ids is not None:
            record["ids"] = self.ids.tolist()
        return record


def once(
    boxes_xyxy: npt.NDArray[np.float32],
    scores: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    limits: float | Limits,
) -> npt.NDArray[np.int64]:
    """Return the rows that `Found.once` keeps."""
    least = limits[labels] if isinstance(limits, np.ndarray) else limits
    rows: npt.NDArray[np.int64] = suppressed(boxes_xyxy, scores + (scores >= least), ONCE_IOU)
    return rows


class Finder(Protocol):
    """A loaded detector, as far as `work` and `tiles` need it."""

    names: list[str]
    input_hw: tuple[int, int]
    card: Card

    def detect(self, image: Any, score: float | None = None) -> Found:
        """Find objects of at least a score in an RGB image."""
