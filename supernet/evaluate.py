"""COCO average precision by pycocotools, for anything that turns an image into boxes."""

import contextlib
import copy
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .coco import DetectionSet, Record
from .errors import DataError
from .letterbox import Image, read_image
from .progress import Progress

Found = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]
"""Boxes xyxy in pixels of the stored image [n, 4], scores [n], class indices [n]."""

Detect = Callable[[Image], Found]


@dataclass(frozen=True, slots=True)
class Metrics:
    """COCO's summary, as shares of 1; -1 where there is no such object."""

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar100: float
    images: int


def evaluate(detect: Detect, data: DetectionSet, *, progress: bool = True) -> Metrics:
    """Run `detect` on every image of a split and score the result."""
    rows: list[dict[str, object]] = []
    with Progress("eval", len(data.records)) if progress else contextlib.nullcontext() as bar:
        for record in data.records:
            image = read_image(record.path, (record.height, record.width))
            if image is None:
                raise DataError(f"cannot decode {record.path}: see heat data check")
            rows += result_rows(record, detect(image), data)
            if bar is not None:
                bar.advance()
    return score_rows(rows, data)


def result_rows(record: Record, found: Found, data: DetectionSet) -> list[dict[str, object]]:
    """Return what was found on an image as COCO result rows."""
    rows: list[dict[str, object]] = []
    for box, score, label in zip(*found, strict=True):
        x0, y0, x1, y1 = (float(side) for side in box)
        rows.append(
            {
                "image_id": record.image_id,
                "category_id": data.category_ids[int(label)],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": float(score),
            }
        )
    return rows


def check_names(names: Sequence[str], data: DetectionSet) -> None:
    """Refuse data whose classes are not a model's."""
    if tuple(names) != data.names:
        raise DataError(
            f"{data.annotation_path} has classes {', '.join(data.names[:5])} ..., the model has "
            f"{', '.join(names[:5])} ...: evaluate on the data it was trained for"
        )


def score_rows(rows: list[dict[str, object]], data: DetectionSet) -> Metrics:
    """Score COCO result rows against a split."""
    if not rows:
        return Metrics(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, len(data.records))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(data.ground_truth)
        truth.createIndex()
        scoring = COCOeval(truth, truth.loadRes(rows), "bbox")
        scoring.evaluate()
        scoring.accumulate()
        scoring.summarize()
    ap, ap50, ap75, small, medium, large, _, _, ar100 = (float(v) for v in scoring.stats[:9])
    return Metrics(ap, ap50, ap75, small, medium, large, ar100, len(data.records))
