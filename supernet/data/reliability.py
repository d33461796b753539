"""Whether scores are what they seem: of the detections at 0.7, are seven in ten right?

Expected calibration error of detections (D-ECE without the box's terms, Kueppers et al. 2020).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .true_positives import Hits

BINS = 10
LEAST_SCORE = 0.05
"""Detections below it are not reported by any deployed network."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Detections with scores of one tenth."""

    count: int
    score: float
    """Mean score."""
    precision: float
    """Share that found an object."""


def reliability(hits: Sequence[Hits], least: Sequence[float] | None = None) -> list[Bin]:
    """Return the bins that have detections, from low scores to high ones, all classes together.

    `least` are the lowest scores that count, by entry of `hits`; `LEAST_SCORE` by default.
    """
    limits = [LEAST_SCORE] * len(hits) if least is None else least
    counted = [each.scores >= limit for each, limit in zip(hits, limits, strict=True)]
    parts = list(zip(hits, counted, strict=True))
    scores = np.concatenate([np.zeros(0), *(each.scores[part] for each, part in parts)])
    right = np.concatenate([np.zeros(0, bool), *(each.right[part] for each, part in parts)])
    place = np.minimum((scores * BINS).astype(int), BINS - 1)
    found = []
    for number in range(BINS):
        here = place == number
        if here.any():
            found.append(
                Bin(int(here.sum()), float(scores[here].mean()), float(right[here].mean()))
            )
    return found


def calibration_error(bins: Sequence[Bin]) -> float | None:
    """Return the mean |precision - score| over all detections; None without any."""
    count = sum(each.count for each in bins)
    if not count:
        return None
    return sum(each.count * abs(each.precision - each.score) for each in bins) / count
