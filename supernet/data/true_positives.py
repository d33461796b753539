"""Which detections of a split are right: matched as COCO does, at IoU 0.5."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .coco_file import ResultRow, boxes_of
from .detection_set import Crowd, DetectionSet
from .greedy_match import greedy_match, in_crowds, ious

MATCH_IOU = 0.5
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Hits:
    """The detections of a class in a split; those in a crowd region are left out."""

    scores: Numbers
    """[n], in no order."""
    right: npt.NDArray[np.bool_]
    """Whether each found an object, [n]."""
    objects: int
    """Objects of the class in the split."""


def hits_by_class(rows: Sequence[ResultRow], data: DetectionSet) -> list[Hits]:
    """Return the detections of each class of a split, matched to its objects.

    Highest score first, each with the free object of its class that it overlaps most.
    """
    place = {category: label for label, category in enumerate(data.category_ids)}
    found: dict[int, dict[int, list[ResultRow]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[int(row["image_id"])][place[int(row["category_id"])]].append(row)
    pairs: list[list[tuple[float, bool]]] = [[] for _ in data.names]
    objects = [0] * data.num_classes
    for record in data.records:
        own = found.get(record.image_id, {})
        for label in {*own, *record.labels.tolist()}:  # of a thousand classes an image has few
            truth = record.boxes_xyxy[record.labels == label].astype(np.float64)
            objects[label] += len(truth)
            crowds = [crowd for crowd in record.crowds if crowd.label == label]
            pairs[label] += _matched(own.get(label, ()), truth, crowds)
    return [
        Hits(
            np.array([score for score, _ in matched], np.float64),
            np.array([right for _, right in matched], np.bool_),
            count,
        )
        for matched, count in zip(pairs, objects, strict=True)
    ]


def _matched(
    rows: Sequence[ResultRow], truth_M4: Numbers, crowds: Sequence[Crowd]
) -> list[tuple[float, bool]]:
    """Return score and whether it is a true positive, of the detections of one image and class."""
    rows = sorted(rows, key=lambda row: -float(row["score"]))
    boxes_N4 = boxes_of(rows)
    right_N = greedy_match(ious(boxes_N4, truth_M4), MATCH_IOU) >= 0
    neither_N = ~right_N & in_crowds(boxes_N4, crowds, MATCH_IOU)
    return [
        (float(row["score"]), bool(right))
        for row, right, neither in zip(rows, right_N, neither_N, strict=True)
        if not neither
    ]
