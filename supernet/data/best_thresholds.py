"""Finds for each class the score threshold with the best F1."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from .coco_file import ResultRow
from .detection_set import DetectionSet

MATCH_IOU = 0.5
Numbers = npt.NDArray[np.float64]


def best_thresholds(rows: Sequence[ResultRow], data: DetectionSet) -> dict[str, float | None]:
    """Return by class name the lowest score to report, so that F1 on the split is largest.

    Detections are matched as COCO does at IoU 0.5: highest score first, each with the free object
    of its class that it overlaps most; those in a crowd region are ignored. Of equal F1 the highest
    score is taken. None for a class without objects in the split or without a correct detection,
    and for classes that share a name.
    """
    found: dict[tuple[int, int], list[ResultRow]] = defaultdict(list)
    for row in rows:
        found[int(row["category_id"]), int(row["image_id"])].append(row)
    return {
        name: _threshold(found, data, label) if data.names.count(name) == 1 else None
        for label, name in enumerate(data.names)
    }


def _threshold(
    found: Mapping[tuple[int, int], Sequence[ResultRow]], data: DetectionSet, label: int
) -> float | None:
    scores: list[float] = []
    hits: list[bool] = []
    objects = 0
    for record in data.records:
        truth = record.boxes_xyxy[record.labels == label].astype(np.float64)
        objects += len(truth)
        rows = found.get((data.category_ids[label], record.image_id), ())
        crowds = [crowd.box_xyxy for crowd in record.crowds if crowd.label == label]
        for score, hit in _matched(rows, truth, np.reshape(np.array(crowds, np.float64), (-1, 4))):
            scores.append(score)
            hits.append(hit)
    order = np.argsort(-np.array(scores), kind="stable")
    ordered = np.array(scores)[order]
    right = np.cumsum(np.array(hits, dtype=np.int64)[order])
    f1 = 2 * right / (np.arange(1, len(order) + 1) + objects)
    # Detections of one score are kept together.
    f1[:-1][ordered[:-1] == ordered[1:]] = 0.0
    if not objects or not np.any(f1 > 0):
        return None
    # The shortest number that is the same float32.
    return float(str(np.float32(ordered[int(f1.argmax())])))


def _matched(
    rows: Sequence[ResultRow], truth_M4: Numbers, crowds_C4: Numbers
) -> list[tuple[float, bool]]:
    """Return score and whether it is a true positive, of the detections of one image and class."""
    free = np.ones(len(truth_M4), dtype=bool)
    matched = []
    for row in sorted(rows, key=lambda row: -float(row["score"])):
        x, y, w, h = row["bbox"]
        box = np.array([x, y, x + w, y + h])
        shared_M = _shared(box, truth_M4)
        sides_M2 = truth_M4[:, 2:] - truth_M4[:, :2]
        iou_M = free * shared_M / np.maximum(w * h + sides_M2.prod(1) - shared_M, 1e-9)
        best = int(iou_M.argmax()) if len(iou_M) else -1
        hit = best >= 0 and bool(iou_M[best] >= MATCH_IOU)
        if hit:
            free[best] = False
        elif np.any(_shared(box, crowds_C4) >= MATCH_IOU * max(w * h, 1e-9)):
            continue
        matched.append((float(row["score"]), hit))
    return matched


def _shared(box: Numbers, others_N4: Numbers) -> Numbers:
    """Return the intersection of a box with each of others, in square pixels."""
    low, high = np.maximum(box[:2], others_N4[:, :2]), np.minimum(box[2:], others_N4[:, 2:])
    area_N: Numbers = np.maximum(high - low, 0).prod(1)
    return area_N
