"""Runs a detector on a split and scores its detections."""

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ..letterbox import Image
from ..progress import Progress
from .average_precision import Metrics, score
from .coco_file import ResultRow, boxes_of, to_bbox
from .detection_set import DetectionSet, Record
from .greedy_match import greedy_match, in_crowds, ious
from .labelled_image import load_image

Found = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]
"""Boxes xyxy in pixels of the stored image [n, 4], scores [n], class indices [n]."""

Detect = Callable[[Image], Found]


def evaluate(detect: Detect, data: DetectionSet, *, progress: bool = True) -> Metrics:
    """Run `detect` on every image of a split and score the result."""
    return score_rows(found_rows(detect, data, progress=progress), data)


def found_rows(detect: Detect, data: DetectionSet, *, progress: bool = True) -> list[ResultRow]:
    """Run `detect` on every image of a split and return COCO result rows."""
    rows: list[ResultRow] = []
    with Progress("eval", len(data.records)) if progress else contextlib.nullcontext() as bar:
        for record in data.records:
            rows += result_rows(record, detect(load_image(record).pixels), data)
            if bar is not None:
                bar.advance()
    return rows


def result_rows(record: Record, found: Found, data: DetectionSet) -> list[ResultRow]:
    """Return the detections of an image as COCO result rows."""
    return [
        {
            "image_id": record.image_id,
            "category_id": data.category_ids[int(label)],
            "bbox": to_bbox(box),
            "score": float(confidence),
        }
        for box, confidence, label in zip(*found, strict=True)
    ]


def score_rows(rows: Sequence[ResultRow], data: DetectionSet) -> Metrics:
    """Score COCO result rows against a split."""
    return score(rows, data).metrics


def confusion_matrix(
    rows: Sequence[ResultRow], data: DetectionSet, *, iou: float = 0.5, score: float = 0.25
) -> npt.NDArray[np.int64]:
    """Return counts [K + 1, K + 1]: true class by row, detected by column, the last is background.

    Detections of at least `score` are matched with the free object they overlap most, by at least
    `iou`, highest score first, whatever their classes. Crowd regions are left out.
    """
    K = data.num_classes
    counts = np.zeros((K + 1, K + 1), dtype=np.int64)
    by_image: dict[int, list[ResultRow]] = {}
    for row in sorted(rows, key=lambda row: -float(row["score"])):
        if row["score"] >= score:
            by_image.setdefault(int(row["image_id"]), []).append(row)
    index = {category: place for place, category in enumerate(data.category_ids)}
    for record in data.records:
        found = by_image.get(record.image_id, [])
        taken_N = greedy_match(ious(boxes_of(found), record.boxes_xyxy), iou)
        true_N = np.append(record.labels, K)[taken_N]
        crowded_N = in_crowds(boxes_of(found), record.crowds, iou)
        for truth, row, crowded in zip(true_N, found, crowded_N, strict=True):
            if truth < K or not crowded:
                counts[truth, index[int(row["category_id"])]] += 1
        np.add.at(counts[:, K], np.delete(record.labels, taken_N[taken_N >= 0]), 1)
    return counts
