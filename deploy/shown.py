"""The detections of a split that a user would be shown: each object once."""

from collections.abc import Sequence

import numpy as np

from supernet.data.coco_file import ResultRow
from supernet.data.detection_set import DetectionSet

from .edge.found import once
from .edge.score_limits import Limits


def shown_rows(rows: Sequence[ResultRow], data: DetectionSet, limits_K: Limits) -> list[ResultRow]:
    """Return the detections of at least the lowest score of their class, one of each object."""
    place = {category: label for label, category in enumerate(data.category_ids)}
    by_image: dict[int, list[ResultRow]] = {}
    for row in rows:
        if row["score"] >= limits_K[place[int(row["category_id"])]]:
            by_image.setdefault(int(row["image_id"]), []).append(row)
    shown = []
    for own in by_image.values():
        boxes = np.array([row["bbox"] for row in own], dtype=np.float32)
        boxes[:, 2:] += boxes[:, :2]
        scores = np.array([row["score"] for row in own], dtype=np.float32)
        labels = np.array([place[int(row["category_id"])] for row in own], dtype=np.int64)
        shown += [own[row] for row in once(boxes, scores, labels, limits_K)]
    return shown
