"""Adds a teacher's boxes to a detection set where nothing is labelled, weighted by their scores."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ..boxes import iou_matrix
from .detection_set import DetectionSet, Record
from .evaluate import Found
from .greedy_match import in_crowds
from .image_files import image_size

SAME_IOU = 0.5
"""A box of the teacher that overlaps a label by as much is that object: the label holds.

And so is one of which as much lies in a crowd region.
"""


def with_soft_labels(
    data: DetectionSet,
    found: Mapping[int, Found],
    class_of: Mapping[int, int],
    limits: npt.NDArray[np.float32],
) -> tuple[DetectionSet, int]:
    """Return a set with a teacher's boxes beside its labels, and how many they are.

    Args:
        data: The set; its labels keep the weight 1.
        found: What the teacher found, by the index of the record, in pixels of its image.
        class_of: The set's class index by the teacher's; its other classes are left out.
        limits: The lowest score taken, by the teacher's class index [K].
    """
    records = [
        _added(record, found[index], class_of, limits)
        if index in found
        else replace(record, weights=np.ones(len(record.labels), np.float32))
        for index, record in enumerate(data.records)
    ]
    return data.of(records), _boxes_in(records) - _boxes_in(data.records)


def with_images(data: DetectionSet, paths: Sequence[Path]) -> DetectionSet:
    """Return a set with more images, on which nothing is labelled; unreadable ones are left out."""
    sizes = ((path, image_size(path)) for path in paths)
    first = max(record.image_id for record in data.records) + 1
    more = [
        Record(
            image_id=first + index,
            path=path,
            height=size[0],
            width=size[1],
            boxes_xyxy=np.zeros((0, 4), np.float32),
            labels=np.zeros(0, np.int64),
        )
        for index, (path, size) in enumerate(sizes)
        if size is not None
    ]
    return data.of([*data.records, *more])


def _boxes_in(records: Sequence[Record]) -> int:
    return sum(len(record.labels) for record in records)


def _added(
    record: Record,
    found: Found,
    class_of: Mapping[int, int],
    limits: npt.NDArray[np.float32],
) -> Record:
    boxes, scores, labels = found
    kept = (scores >= limits[labels]) & np.isin(labels, list(class_of))
    kept &= ~in_crowds(boxes.astype(np.float64), record.crowds, SAME_IOU)
    if len(record.labels):
        labelled = torch.from_numpy(record.boxes_xyxy)
        kept &= iou_matrix(torch.from_numpy(boxes), labelled).amax(1).numpy() < SAME_IOU
    boxes, scores = boxes[kept].astype(np.float32), scores[kept].astype(np.float32)
    mapped = np.array([class_of[int(label)] for label in labels[kept]], dtype=np.int64)
    sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    areas = record.areas_px
    return replace(
        record,
        boxes_xyxy=np.concatenate([record.boxes_xyxy, boxes]),
        labels=np.concatenate([record.labels, mapped]),
        areas_px=None if areas is None else np.concatenate([areas, sides.prod(axis=1)]),
        weights=np.concatenate([np.ones(len(record.labels), np.float32), scores]),
    )
