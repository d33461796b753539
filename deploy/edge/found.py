"""The objects found on an image, and the interface of what finds them.

Needs numpy only; every bundle's `detect.py` carries this file's text.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from supernet.errors import UserError

from .card import Card
from .postprocess import suppressed
from .records import CocoResult, FoundRecord, Held
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

    names: tuple[str, ...] = ()
    """Class names, by label."""

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

    def to_supervision(self) -> Any:
        """Return `supervision.Detections` (pip install supervision)."""
        supervision = self._package("supervision")
        return supervision.Detections(
            xyxy=self.boxes_xyxy_px,
            confidence=self.scores,
            class_id=self.labels,
            tracker_id=self.ids,
            data={"class_name": np.array(self._class_names(), dtype=str)},
        )

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame` with name, label, score and corners of each object."""
        pandas = self._package("pandas")
        corners = self.boxes_xyxy_px.T
        columns = {
            "name": self._class_names(),
            "label": self.labels,
            "score": self.scores,
            **dict(zip(("x0_px", "y0_px", "x1_px", "y1_px"), corners, strict=True)),
        }
        return pandas.DataFrame(columns | ({} if self.ids is None else {"id": self.ids}))

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[CocoResult]:
        """Return the objects as COCO's results json has them: boxes as x, y, width, height.

        `category_ids` has the category of each label; by default they count from 1.
        """
        return [
            {
                "image_id": image_id,
                "category_id": label + 1 if category_ids is None else int(category_ids[label]),
                "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
                "score": float(score),
            }
            for (x0, y0, x1, y1), score, label in zip(
                self.boxes_xyxy_px, self.scores, self.labels.tolist(), strict=True
            )
        ]

    def _class_names(self) -> list[str]:
        return [self.names[label] if self.names else str(label) for label in self.labels.tolist()]

    @staticmethod
    def _package(name: str) -> Any:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            raise UserError(f"{name} is not installed: pip install {name}") from None


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

    def held(self) -> Held | None:
        """Return how a frame rate was held, where one was to be."""
