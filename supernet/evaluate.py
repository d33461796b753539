"""COCO average precision by pycocotools, for anything that turns an image into boxes."""

import contextlib
import copy
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .boxes import iou_matrix
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
    ar1: float
    ar10: float
    ar100: float
    images: int
    ap_by_class: Mapping[str, float] = field(default_factory=dict)

    def rounded(self) -> dict[str, Any]:
        """Return what a stage records."""
        facts = {key: value for key, value in asdict(self).items() if key != "ap_by_class"}
        numbers = {k: round(v, 5) if isinstance(v, float) else v for k, v in facts.items()}
        return numbers | {"ap_by_class": {k: round(v, 5) for k, v in self.ap_by_class.items()}}


@dataclass(frozen=True, slots=True)
class Scores:
    """The summary, and the curves behind it."""

    metrics: Metrics
    precision_TRK: npt.NDArray[np.float64]
    """Precision at IoU 0.5, 0.55 ... 0.95 and 101 recalls, by class; -1 where it has no objects."""
    by: str
    """Package that scored."""


def evaluate(detect: Detect, data: DetectionSet, *, progress: bool = True) -> Metrics:
    """Run `detect` on every image of a split and score the result."""
    return score_rows(found_rows(detect, data, progress=progress), data)


def found_rows(
    detect: Detect, data: DetectionSet, *, progress: bool = True
) -> list[dict[str, object]]:
    """Run `detect` on every image of a split and return COCO result rows."""
    rows: list[dict[str, object]] = []
    with Progress("eval", len(data.records)) if progress else contextlib.nullcontext() as bar:
        for record in data.records:
            image = read_image(record.path, (record.height, record.width))
            if image is None:
                raise DataError(f"cannot decode {record.path}: see heat data check")
            rows += result_rows(record, detect(image), data)
            if bar is not None:
                bar.advance()
    return rows


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
    return score(rows, data).metrics


def score(rows: list[dict[str, object]], data: DetectionSet) -> Scores:
    """Score COCO result rows: by faster-coco-eval where it is installed, else by pycocotools."""
    coco, evaluation, by = _evaluator()
    if not rows:
        by_class = dict.fromkeys(data.names, 0.0)
        nothing = Metrics(0, 0, 0, 0, 0, 0, 0, 0, 0, len(data.records), by_class)
        return Scores(nothing, np.zeros((10, 101, data.num_classes)), by)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco()
        truth.dataset = copy.deepcopy(data.ground_truth)
        truth.createIndex()
        scoring = evaluation(truth, truth.loadRes(rows), "bbox")
        scoring.evaluate()
        scoring.accumulate()
        scoring.summarize()
    ap, ap50, ap75, small, medium, large, ar1, ar10, ar100 = (float(v) for v in scoring.stats[:9])
    everything = np.asarray(scoring.eval["precision"])[:, :, :, 0, -1]
    classes = {}
    for index, name in enumerate(data.names):
        known = everything[:, :, index][everything[:, :, index] > -1]
        classes[name] = float(known.mean()) if known.size else -1.0
    sizes = (small, medium, large)
    found = Metrics(ap, ap50, ap75, *sizes, ar1, ar10, ar100, len(data.records), classes)
    return Scores(found, everything, by)


def _evaluator() -> tuple[Any, Any, str]:
    try:
        from faster_coco_eval import COCO, COCOeval_faster  # type: ignore[import-not-found]
    except ImportError:
        from pycocotools.coco import COCO as SLOW_COCO
        from pycocotools.cocoeval import COCOeval

        return SLOW_COCO, COCOeval, "pycocotools"
    return COCO, COCOeval_faster, "faster-coco-eval"


def confusion_matrix(
    rows: Sequence[Mapping[str, Any]], data: DetectionSet, *, iou: float = 0.5, score: float = 0.25
) -> npt.NDArray[np.int64]:
    """Return counts [K + 1, K + 1], truth by row, found by column; the last of each is nothing.

    Detections of at least `score` take the free object they overlap most, by at least `iou`,
    surest first, whatever their classes. Crowds are left out.
    """
    K = data.num_classes
    counts = np.zeros((K + 1, K + 1), dtype=np.int64)
    by_image: dict[int, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: -float(row["score"])):
        if row["score"] >= score:
            by_image.setdefault(int(row["image_id"]), []).append(row)
    index = {category: place for place, category in enumerate(data.category_ids)}
    for record in data.records:
        free = np.ones(len(record.labels), dtype=bool)
        for row in by_image.get(record.image_id, ()):
            x, y, w, h = row["bbox"]
            box = torch.tensor([[x, y, x + w, y + h]], dtype=torch.float32)
            overlaps = iou_matrix(box, torch.from_numpy(record.boxes_xyxy))[0].numpy() * free
            best = int(overlaps.argmax()) if len(overlaps) else -1
            column = index[int(row["category_id"])]
            if best >= 0 and overlaps[best] >= iou:
                free[best] = False
                counts[record.labels[best], column] += 1
            else:
                counts[K, column] += 1
        np.add.at(counts[:, K], record.labels[free], 1)
    return counts
