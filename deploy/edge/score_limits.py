"""The lowest score reported of each class: the user's, the card's, or the default.

Needs numpy only; every bundle's `detect.py` carries this file's text.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from supernet.errors import BundleError, UserError

from .card import Card

SHOW_SCORE = 0.3
"""Default score below which objects are not reported."""

Limits = npt.NDArray[np.float32]
"""Lowest score reported, by class index [K]."""


def check_score(score: float) -> float:
    """Return a score; raise `UserError` where it is not a number from 0 to 1."""
    if not isinstance(score, int | float | np.number):
        raise UserError(f"score {score!r}: a number from 0 to 1")
    if not 0.0 <= score <= 1.0:
        raise UserError(f"--score {score:g}: a number from 0 to 1")
    return score


def score_limits(card: Card, names: Sequence[str], score: float | None = None) -> Limits:
    """Return the lowest score of each class: `score`, else the card's threshold, else 0.3.

    Raises `BundleError` where the card's thresholds are not scores of its classes.
    """
    if score is not None:
        return np.full(len(names), check_score(score), dtype=np.float32)
    thresholds: object = card.get("thresholds") or {}  # may be edited by hand
    if not isinstance(thresholds, dict):
        raise BundleError("card.json: thresholds has no names of classes: export again")
    wrong = [
        f"{name}: {value!r}"
        for name, value in thresholds.items()
        if name not in names or not (value is None or _is_score(value))
    ]
    if wrong:
        raise BundleError(
            f"card.json: thresholds has {wrong[0]}: a score from 0 to 1 or null is needed, by the "
            "name of a class; export again"
        )
    found = [thresholds.get(name) for name in names]
    return np.array([SHOW_SCORE if value is None else value for value in found], dtype=np.float32)


def _is_score(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
