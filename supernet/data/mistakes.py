"""What a detector gets wrong on a labelled split, image by image, and labels that may be wrong.

Detections are matched whatever their classes, highest score first, each with the free object that
it overlaps most, by IoU 0.5 at least.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .average_precision import unique_names
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
    area_px: float = 0.0
    """Of the missed object, as it decides its size."""

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
    # In float32, as scores are: the best threshold is the score of a right detection.
    least_K = least_scores(known, data.names)
    by_image: dict[int, list[ResultRow]] = {}
    for row in sorted(rows, key=lambda row: -float(row["score"])):
        if np.float32(row["score"]) >= least_K[place[int(row["category_id"])]]:
            by_image.setdefault(int(row["image_id"]), []).append(row)
    found = [
        Mistaken(record, _of_image(record, by_image.get(record.image_id, ()), place))
        for record in data.records
    ]
    return sorted((each for each in found if each.mistakes), key=lambda each: -each.cost)


def least_scores(
    thresholds: Mapping[str, float | None], names: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Return the lowest score that counts for each class, [K]."""
    found = (thresholds.get(name) for name in names)
    return np.array([LEAST_SCORE if least is None else least for least in found], np.float32)


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
        box, label = _corners(record.boxes_xyxy[index]), int(record.labels[index])
        area_px = float(record.object_areas_px[index])
        wrong.append(Mistake("missed", box, 0.0, None, label, area_px))
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
    names = unique_names(data)
    counts = {name: {size: [0, 0] for size, _ in SIZES_PX} for name in names}
    for record in data.records:
        for label, area_px in zip(record.labels, record.object_areas_px, strict=True):
            counts[names[label]][_size(area_px)][1] += 1
    for image in wrong:
        for mistake in image.mistakes:
            if mistake.kind == "missed" and mistake.truth is not None:
                counts[names[mistake.truth]][_size(mistake.area_px)][0] += 1
    return {
        name: {size: (missed, every) for size, (missed, every) in sizes.items() if every}
        for name, sizes in counts.items()
    }


def _size(area_px: float) -> str:
    return next(size for size, limit in SIZES_PX if area_px <= limit)
