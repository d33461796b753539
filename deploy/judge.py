"""Scores detectors on labelled images: AP, and for each class the threshold of the best F1."""

from dataclasses import dataclass
from typing import Self

from supernet.data.best_thresholds import best_thresholds
from supernet.data.coco_file import ResultRow
from supernet.data.detection_set import DetectionSet
from supernet.data.evaluate import Detect, found_rows, score_rows
from supernet.data.true_positives import MATCH_IOU

from .edge.card import Thresholds


@dataclass(frozen=True, slots=True)
class Judge:
    """Labelled images, numbered as the network's classes are, and what torch detects on them."""

    data: DetectionSet
    exact: list[ResultRow]
    """Torch's detections, their scores not calibrated."""

    @classmethod
    def of(cls, detect: Detect, data: DetectionSet) -> Self:
        """Detect by torch on every image."""
        return cls(data, found_rows(detect, data))

    @property
    def exact_ap(self) -> float:
        """AP of torch in points of 100."""
        return self.ap(self.exact)

    def found(self, detect: Detect) -> list[ResultRow]:
        """Detect on every image."""
        return found_rows(detect, self.data)

    def ap(self, rows: list[ResultRow]) -> float:
        """Return AP in points of 100."""
        return 100.0 * max(0.0, score_rows(rows, self.data).ap)

    def thresholds(self, rows: list[ResultRow]) -> Thresholds:
        """Return the lowest score reported of each class, and how it was found, for the card."""
        return {
            "thresholds": best_thresholds(rows, self.data),
            "thresholds_are": (
                "lowest score reported of each class: that of the best F1 (IoU "
                f"{MATCH_IOU:g}) on {len(self.data.records)} images of {self.data.root.name} "
                f"{self.data.split}; null where there is none, then the default holds; --score "
                "overrides all"
            ),
        }
