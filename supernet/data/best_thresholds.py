"""Finds for each class the score threshold with the best F1."""

from collections.abc import Sequence

import numpy as np

from .coco_file import ResultRow
from .detection_set import DetectionSet
from .true_positives import Hits, hits_by_class


def best_thresholds(rows: Sequence[ResultRow], data: DetectionSet) -> dict[str, float | None]:
    """Return by class name the lowest score to report, so that F1 on the split is largest.

    Of equal F1 the highest score is taken. None for a class without objects in the split or without
    a correct detection, and for classes that share a name.
    """
    return thresholds_of(hits_by_class(rows, data), data.names)


def thresholds_of(hits: Sequence[Hits], names: Sequence[str]) -> dict[str, float | None]:
    """Return the same of detections that are matched already, by class index."""
    return {
        name: _threshold(each) if names.count(name) == 1 else None
        for name, each in zip(names, hits, strict=True)
    }


def _threshold(hits: Hits) -> float | None:
    order = np.argsort(-hits.scores, kind="stable")
    ordered = hits.scores[order]
    right = np.cumsum(hits.right[order].astype(np.int64))
    f1 = 2 * right / (np.arange(1, len(order) + 1) + hits.objects)
    # Detections of one score are kept together.
    f1[:-1][ordered[:-1] == ordered[1:]] = 0.0
    if not hits.objects or not np.any(f1 > 0):
        return None
    # The shortest number that is the same float32.
    return float(str(np.float32(ordered[int(f1.argmax())])))
