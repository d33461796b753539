"""What a detector gets wrong on a labelled split, image by image, and labels that may be wrong.

Detections are matched whatever their classes, highest score first, each with the free object that
it overlaps most, by IoU 0.5 at least.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from ..boxes import iou_matrix
from .coco_file import ResultRow
from .detection_set import DetectionSet, Record
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
    wrong: list[Mistake] = []
    free = np.ones(len(record.labels), dtype=bool)
    for row in rows:
        x, y, w, h = (float(value) for value in row["bbox"])
        box, label, score = (x, y, x + w, y + h), place[int(row["category_id"])], row["score"]
        overlaps = _overlaps(box, record.boxes_xyxy) * free
        best = int(overlaps.argmax()) if len(overlaps) else -1
        if best >= 0 and overlaps[best] >= MATCH_IOU:
            free[best] = False
            truth = int(record.labels[best])
            if truth != label:
                wrong.append(Mistake("wrong class", box, float(score), label, truth))
        elif not any(_covers(crowd.box_xyxy, box) for crowd in record.crowds):
            wrong.append(Mistake("nothing there", box, float(score), label, None))
    for index in np.nonzero(free)[0]:
        x1, y1, x2, y2 = (float(value) for value in record.boxes_xyxy[index])
        wrong.append(Mistake("missed", (x1, y1, x2, y2), 0.0, None, int(record.labels[index])))
    return tuple(wrong)


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


def _overlaps(
    box: tuple[float, float, float, float], boxes_xyxy: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    own = torch.tensor([box], dtype=torch.float32)
    overlaps: npt.NDArray[np.float32] = iou_matrix(own, torch.from_numpy(boxes_xyxy))[0].numpy()
    return overlaps


def _covers(crowd_xyxy: Sequence[float], box: tuple[float, float, float, float]) -> bool:
    """Return whether half of a detection lies in a crowd region: then it counts as neither."""
    low = max(crowd_xyxy[0], box[0]), max(crowd_xyxy[1], box[1])
    high = min(crowd_xyxy[2], box[2]), min(crowd_xyxy[3], box[3])
    shared = max(0.0, high[0] - low[0]) * max(0.0, high[1] - low[1])
    return shared >= MATCH_IOU * max((box[2] - box[0]) * (box[3] - box[1]), 1e-9)
