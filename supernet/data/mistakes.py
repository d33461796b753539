"""What a detector gets wrong on a labelled split, image by image, and labels that may be wrong.

Detections are matched whatever their classes, highest score first, each with the free object that
it overlaps most, by IoU 0.5 at least.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .coco_file import ResultRow, boxes_of
from .detection_set import DetectionSet, Record
from .greedy_match import greedy_match, in_crowds, ious
from .true_positives import MATCH_IOU

LEAST_SCORE = 0.25
"""Detections below it are no mistakes, where their class has no threshold of its own."""
CONFIDENT = 0.7
"""Score from which a mistake may be the label's."""
SIZES_PX = (("small", 32.0**2), ("medium", 96.0**2), ("large", float("inf")))
"""COCO's sizes: areas up to which an object is of each."""

Kind = Literal["missed", "wrong class", "nothing there"]


@dataclass(frozen=True, slots=True)
class Mistake:
    """An object that was missed, or a detection that is wrong."""

    kind: Kind
    box_xyxy: tuple[float, float, float, float]
    """Of the detection, or of the missed object, in pixels of the stored image."""
    score: float
    """0 for a missed object."""
    found: int | None
    """Detected class; None for a missed object."""
    truth: int | None
    """True class; None where there is nothing."""

    @property
    def cost(self) -> float:
        """1 for a missed object, the score of a wrong detection."""
        return 1.0 if self.kind == "missed" else self.score


@dataclass(frozen=True, slots=True)
class Mistaken:
    """An image and what was wrong on it."""

    record: Record
    mistakes: tuple[Mistake, ...]

    @property
    def cost(self) -> float:
        """Sum over the mistakes."""
        return sum(mistake.cost for mistake in self.mistakes)


def mistakes(
    rows: Sequence[ResultRow],
    data: DetectionSet,
    thresholds: Mapping[str, float | None] | None = None,
) -> list[Mistaken]:
    """Return the images with mistakes, the costliest first.

    Detections are those of at least the threshold of their class, by its name, or `LEAST_SCORE`.
    """
    place = {category: label for label, category in enumerate(data.category_ids)}
    known = thresholds or {}
    least = [LEAST_SCORE if (s := known.get(name)) is None else s for name in data.names]
    by_image: dict[int, list[ResultRow]] = {}
    for row in sorted(rows, key=lambda row: -float(row["score"])):
        if row["score"] >= least[place[int(row["category_id"])]]:
            by_image.setdefault(int(row["image_id"]), []).append(row)
    found = [
        Mistaken(record, _of_image(record, by_image.get(record.image_id, ()), place))
        for record in data.records
    ]
    return sorted((each for each in found if each.mistakes), key=lambda each: -each.cost)


def _of_image(
    record: Record, rows: Sequence[ResultRow], place: dict[int, int]
) -> tuple[Mistake, ...]:
    boxes_N4 = boxes_of(rows)
    taken_N = greedy_match(ious(boxes_N4, record.boxes_xyxy), MATCH_IOU)
    crowded_N = in_crowds(boxes_N4, record.crowds, MATCH_IOU)
    wrong: list[Mistake] = []
    for row, box, taken, crowded in zip(rows, boxes_N4, taken_N, crowded_N, strict=True):
        label, score = place[int(row["category_id"])], float(row["score"])
        truth = int(record.labels[taken]) if taken >= 0 else None
        if truth is not None and truth != label:
            wrong.append(Mistake("wrong class", _corners(box), score, label, truth))
        elif truth is None and not crowded:
            wrong.append(Mistake("nothing there", _corners(box), score, label, None))
    for index in np.setdiff1d(np.arange(len(record.labels)), taken_N):
        missed = _corners(record.boxes_xyxy[index])
        wrong.append(Mistake("missed", missed, 0.0, None, int(record.labels[index])))
    return tuple(wrong)


def _corners(box: npt.NDArray[Any]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(value) for value in box)
    return x1, y1, x2, y2


def suspected_labels(wrong: Sequence[Mistaken]) -> list[tuple[Record, Mistake]]:
    """Return the confident detections that no label agrees with, most confident first."""
    found = [
        (image.record, mistake)
        for image in wrong
        for mistake in image.mistakes
        if mistake.score >= CONFIDENT
    ]
    return sorted(found, key=lambda pair: -pair[1].score)


def missed_by_size(
    wrong: Sequence[Mistaken], data: DetectionSet
) -> dict[str, dict[str, tuple[int, int]]]:
    """Return by class and size how many objects were missed, and how many there are."""
    counts = {name: {size: [0, 0] for size, _ in SIZES_PX} for name in data.names}
    for record in data.records:
        sides = record.boxes_xyxy[:, 2:] - record.boxes_xyxy[:, :2]
        for label, area in zip(record.labels, sides.prod(axis=1), strict=True):
            counts[data.names[label]][_size(float(area))][1] += 1
    for image in wrong:
        for mistake in image.mistakes:
            if mistake.kind == "missed" and mistake.truth is not None:
                x1, y1, x2, y2 = mistake.box_xyxy
                counts[data.names[mistake.truth]][_size((x2 - x1) * (y2 - y1))][0] += 1
    return {
        name: {size: (missed, every) for size, (missed, every) in sizes.items() if every}
        for name, sizes in counts.items()
    }


def _size(area_px: float) -> str:
    return next(size for size, limit in SIZES_PX if area_px <= limit)
