"""COCO average precision, by faster-coco-eval where it is installed, else by pycocotools.

Classes are scored in groups: the scorers keep a list for each pair of an image and a class, which
for a thousand classes is more than most machines have.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt

from .coco_file import CocoAnnotation, CocoFile, ResultRow
from .detection_set import DetectionSet

PAIRS = 100_000
"""Pairs of an image and a class that are scored at once: some hundred megabytes."""
GROUP = 50
"""Classes that are scored at once, at most: their curves take 0.2 MB each."""
MAX_DETECTIONS = (1, 10, 100)
AREAS = 4
"""All, small, medium and large."""

Item = TypeVar("Item", CocoAnnotation, ResultRow)


class ApResult(TypedDict):
    """COCO's summary as recorded: shares of 1 with five decimals; None without such objects."""

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar1: float | None
    ar10: float | None
    ar100: float | None
    images: int
    ap_by_class: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Metrics:
    """COCO's summary as scored: shares of 1; -1 where there is no such object."""

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
    """Classes of one name are distinguished by their category ids."""

    def rounded(self) -> ApResult:
        """Return the summary as recorded."""
        return {
            "ap": known(self.ap),
            "ap50": known(self.ap50),
            "ap75": known(self.ap75),
            "ap_small": known(self.ap_small),
            "ap_medium": known(self.ap_medium),
            "ap_large": known(self.ap_large),
            "ar1": known(self.ar1),
            "ar10": known(self.ar10),
            "ar100": known(self.ar100),
            "images": self.images,
            "ap_by_class": {name: known(ap) for name, ap in self.ap_by_class.items()},
        }


@dataclass(frozen=True, slots=True)
class Scores:
    """COCO's summary, and the precision-recall curves it is computed from."""

    metrics: Metrics
    precision_TRK: npt.NDArray[np.float64]
    """Precision at IoU 0.5, 0.55 ... 0.95 and 101 recalls, by class; -1 where it has no objects."""
    by: str
    """Name of the package that scored."""


def known(value: float) -> float | None:
    """Return a share with five decimals; None where it is not known, which scorers call -1."""
    return round(value, 5) if value >= 0 else None


def score(rows: Sequence[ResultRow], data: DetectionSet) -> Scores:
    """Score COCO result rows against a split."""
    coco, evaluation, by = _evaluator()
    K = data.num_classes
    precision_TRK = np.full((10, 101, K), -1.0)
    recall_TKM = np.full((10, K, len(MAX_DETECTIONS)), -1.0)
    by_size_KA = np.full((K, AREAS), np.nan)
    truth = data.ground_truth
    objects, found = _by_category(truth["annotations"]), _by_category(rows)
    size = group_size(len(data.records))
    for first in range(0, K, size):
        # The scorers sort ids; those of classes matched by name may have any order.
        part = sorted(range(first, min(first + size, K)), key=data.category_ids.__getitem__)
        ids = [data.category_ids[index] for index in part]
        own = [item for id in ids for item in objects.get(id, ())]
        if not own:
            continue
        theirs = [item for id in ids for item in found.get(id, ())]
        with contextlib.redirect_stdout(io.StringIO()):
            scoring = evaluation(
                _as_coco(coco, truth, own), _as_coco(coco, truth, _numbered(theirs)), "bbox"
            )
            scoring.params.catIds = ids
            scoring.params.imgIds = sorted({item["image_id"] for item in (*own, *theirs)})
            scoring.evaluate()
            scoring.accumulate()
        precision = np.asarray(scoring.eval["precision"])  # [T, R, K, A, M]
        precision_TRK[:, :, part] = precision[:, :, :, 0, -1]
        recall_TKM[:, part] = np.asarray(scoring.eval["recall"])[:, :, 0]
        for place, index in enumerate(part):
            by_size_KA[index] = [_mean(precision[:, :, place, a, -1]) for a in range(AREAS)]
    by_size_KA[by_size_KA == -1] = np.nan
    classes = {
        name: _mean(precision_TRK[:, :, index]) for index, name in enumerate(unique_names(data))
    }
    small, medium, large = (_mean_known(by_size_KA[:, area]) for area in range(1, AREAS))
    metrics = Metrics(
        _mean(precision_TRK),
        _mean(precision_TRK[0]),
        _mean(precision_TRK[5]),
        small,
        medium,
        large,
        _mean(recall_TKM[:, :, 0]),
        _mean(recall_TKM[:, :, 1]),
        _mean(recall_TKM[:, :, 2]),
        len(data.records),
        classes,
    )
    return Scores(metrics, precision_TRK, by)


def group_size(images: int) -> int:
    """Return how many classes are scored at once."""
    return min(GROUP, max(1, PAIRS // max(1, images)))


def unique_names(data: DetectionSet) -> list[str]:
    """Return the class names, with the category id where several classes have one name."""
    return [
        name if data.names.count(name) == 1 else f"{name} (id {id})"
        for name, id in zip(data.names, data.category_ids, strict=True)
    ]


def _by_category(items: Sequence[Item]) -> dict[int, list[Item]]:
    found: dict[int, list[Item]] = {}
    for item in items:
        found.setdefault(int(item["category_id"]), []).append(item)
    return found


def _numbered(rows: Sequence[ResultRow]) -> list[CocoAnnotation]:
    """Return result rows as annotations, numbered from 1."""
    return [
        {**row, "id": index, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
        for index, row in enumerate(rows, 1)
    ]


def _as_coco(coco: Any, truth: CocoFile, annotations: Sequence[CocoAnnotation]) -> Any:
    """Return a set with other annotations as the scorer's class `coco`."""
    made = coco()
    made.dataset = {**truth, "annotations": [dict(item) for item in annotations]}
    made.createIndex()
    return made


def _mean(values: npt.NDArray[np.float64]) -> float:
    """Return the mean of the values that are not -1; -1 where there is none."""
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def _mean_known(values: npt.NDArray[np.float64]) -> float:
    """Return the mean over classes with such objects: each has as many thresholds and recalls."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else -1.0


def _evaluator() -> tuple[Any, Any, str]:
    """Return the scorer's classes of a set and of an evaluation, and its package."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster  # type: ignore[import-not-found]
    except ImportError:
        from pycocotools.coco import COCO as SLOW_COCO
        from pycocotools.cocoeval import COCOeval

        return SLOW_COCO, COCOeval, "pycocotools"
    return COCO, COCOeval_faster, "faster-coco-eval"
