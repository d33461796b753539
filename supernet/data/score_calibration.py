"""Turns scores into probabilities: a temperature and a bias for each class, fitted on a split.

The score s of class k becomes sigmoid(logit(s) / T_k + b_k), the probability that such a detection
finds an object at IoU 0.5: temperature scaling (Guo et al. 2017) with the bias of Platt (1999), for
detections by Kueppers et al. (2020, "logistic calibration" without its box terms). Every map rises,
so the order within a class stays, and AP with it.

Without the bias 0.5 would remain 0.5. Detectors are off there, too: they are trained towards a
quality, not towards whether IoU reaches 0.5, and most candidates of a middling score are doubles.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from .coco_file import ResultRow
from .detection_set import DetectionSet
from .reliability import LEAST_SCORE, calibration_error, reliability
from .true_positives import Hits, Numbers, hits_by_class

FEW = 20
"""A class with fewer detections has the values of all classes together."""
FEWEST = 10
"""Right and wrong detections, of all classes, without which nothing is fitted."""
POOLED_STD = (2.0, 2.0)
"""Prior of 1 / T and b of all classes together: standard deviations around 1 and 0."""
CLASS_STD = (0.5, 1.0)
"""The same of one class, around the values of all classes."""
LEAST_SLOPE = 0.05
"""Of 1 / T, so that maps rise."""

Labels = npt.NDArray[np.int64]


class CalibrationRule(TypedDict):
    """The maps for programs without HEAT, by class index."""

    temperatures: list[float]
    biases: list[float]


@dataclass(frozen=True, slots=True)
class ScoreCalibration:
    """A rising map of scores for each class, by class index."""

    temperatures: tuple[float, ...]
    biases: tuple[float, ...]

    @classmethod
    def from_rule(cls, rule: CalibrationRule) -> "ScoreCalibration":
        """Return the maps of a rule."""
        return cls(tuple(rule["temperatures"]), tuple(rule["biases"]))

    def rule(self) -> CalibrationRule:
        """Return the maps for programs without HEAT."""
        return {"temperatures": list(self.temperatures), "biases": list(self.biases)}

    def __call__(self, scores_N: Numbers, labels_N: Labels) -> Numbers:
        """Return the calibrated scores."""
        temperatures, biases = np.array(self.temperatures), np.array(self.biases)
        found: Numbers = expit(logit(scores_N) / temperatures[labels_N] + biases[labels_N])
        return found

    def inverse(self, scores_N: Numbers, labels_N: Labels) -> Numbers:
        """Return the scores that become these."""
        temperatures, biases = np.array(self.temperatures), np.array(self.biases)
        found: Numbers = expit((logit(scores_N) - biases[labels_N]) * temperatures[labels_N])
        return found

    def least(self) -> list[float]:
        """Return by class what `LEAST_SCORE` becomes."""
        every = np.arange(len(self.temperatures))
        return [float(score) for score in self(np.full(len(every), LEAST_SCORE), every)]

    def of_hits(self, hits: Sequence[Hits]) -> list[Hits]:
        """Return the detections of each class with calibrated scores."""
        return [
            replace(each, scores=self(each.scores, np.full(len(each.scores), label)))
            for label, each in enumerate(hits)
        ]

    def of_rows(self, rows: Sequence[ResultRow], data: DetectionSet) -> list[ResultRow]:
        """Return detections with calibrated scores, each rounded to float32.

        So they equal those of the deployed network, as far as it computes the same.
        """
        place = {category: label for label, category in enumerate(data.category_ids)}
        labels = np.array([place[int(row["category_id"])] for row in rows], dtype=np.int64)
        scores = self(np.array([row["score"] for row in rows], dtype=np.float64), labels)
        return [
            {**row, "score": float(np.float32(score))}
            for row, score in zip(rows, scores, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A calibration, what it was fitted on, and what it gives on other images."""

    calibration: ScoreCalibration
    data: str
    """Name of the data set."""
    split: str
    images: int
    detections: int
    """Detections it was fitted on: those of at least `LEAST_SCORE`."""
    error_before: float
    """D-ECE of the scores as they are."""
    error_after: float
    """D-ECE of calibrated scores, each half of the images by what was fitted on the other."""


def calibrate(rows: Sequence[ResultRow], data: DetectionSet) -> Calibrated | None:
    """Fit temperatures and biases on the detections of a split.

    None where there are too few detections, right or wrong, to fit and to measure it, and where
    scores of images it was not fitted on would not be nearer to shares than before.
    """
    halves = [hits_by_class(rows, data.of(data.records[start::2])) for start in (0, 1)]
    hits = hits_by_class(rows, data)
    fitted = [fit_scores(part) for part in (*halves, hits)]
    if fitted[0] is None or fitted[1] is None or fitted[2] is None:
        return None
    held_out: list[Hits] = []
    least: list[float] = []
    for calibration, other in ((fitted[0], halves[1]), (fitted[1], halves[0])):
        held_out += calibration.of_hits(other)
        least += calibration.least()
    before, after = (
        calibration_error(reliability(hits)),
        calibration_error(reliability(held_out, least)),
    )
    if before is None or after is None or after >= before:
        return None
    return Calibrated(
        fitted[2],
        data.root.name,
        data.split,
        len(data.records),
        sum(int((each.scores >= LEAST_SCORE).sum()) for each in hits),
        round(before, 4),
        round(after, 4),
    )


def fit_scores(hits: Sequence[Hits]) -> ScoreCalibration | None:
    """Return the likeliest temperatures and biases of detections; None of too few.

    Detections below `LEAST_SCORE` take no part: most heads do not report them, and there are more
    of them than of all others.
    """
    counted = [each.scores >= LEAST_SCORE for each in hits]
    logits = [logit(each.scores[part]) for each, part in zip(hits, counted, strict=True)]
    right = [each.right[part] for each, part in zip(hits, counted, strict=True)]
    every = np.concatenate([*right, np.zeros(0, np.bool_)])
    if min(every.sum(), len(every) - every.sum()) < FEWEST:
        return None
    pooled = _likeliest(np.concatenate(logits), every, (1.0, 0.0), POOLED_STD)
    found = [
        _likeliest(own, hit, pooled, CLASS_STD) if len(own) >= FEW else pooled
        for own, hit in zip(logits, right, strict=True)
    ]
    return ScoreCalibration(
        tuple(round(1.0 / slope, 5) for slope, _ in found), tuple(round(b, 5) for _, b in found)
    )


def _likeliest(
    logits_N: Numbers,
    right_N: npt.NDArray[np.bool_],
    mean: tuple[float, float],
    std: tuple[float, float],
) -> tuple[float, float]:
    """Return slope and bias of logistic regression with a normal prior (convex, one optimum)."""
    logits_N = np.clip(logits_N, -50.0, 50.0)  # of a score of 1 it is infinite

    def loss(values: Numbers) -> tuple[float, Numbers]:
        z_N = values[0] * logits_N + values[1]
        off = (values - mean) / np.array(std)
        excess_N = expit(z_N) - right_N
        gradient = np.array([(excess_N * logits_N).sum(), excess_N.sum()]) + off / np.array(std)
        cost = np.logaddexp(0.0, z_N).sum() - z_N[right_N].sum() + (off**2).sum() / 2
        return float(cost), gradient

    from scipy.optimize import minimize  # slow to import, and every network imports this file

    bounds = ((LEAST_SLOPE, None), (None, None))
    done = minimize(loss, np.array(mean), jac=True, method="L-BFGS-B", bounds=bounds)
    return float(done.x[0]), float(done.x[1])
