"""Whole networks measured against the sum of their entries: the table's scale and its error.

    T(network) = factor * sum of entries + overhead * number of entries

The factor takes up what memory and caches cost in a whole network, the overhead what each further
entry costs beyond its own time (a changed layout, a colder buffer). Both are fitted on the relative
errors of the anchor networks, where large ones weigh less (Huber): a network that was disturbed
while it ran must not bend the table. The error is that of networks not used for the fit.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RIDGE = 1e-3
"""Pull of the factor to 1 and of the overhead to 0, in squared relative errors."""
USUAL_ERROR = 0.02
"""Relative error beyond which an anchor weighs less."""
FIT_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One whole network."""

    sum_ms: float
    """Sum of its entries."""
    entries: int
    """Number of its entries."""
    measured_ms: float
    """Measured at the table's reference speed."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What turns the sum of a network's entries into its latency."""

    factor: float = 1.0
    overhead_ms: float = 0.0
    """Milliseconds added for each entry of the network."""
    anchors: tuple[Sample, ...] = ()
    """Networks that the factor and the overhead were fitted on."""
    held_out: tuple[Sample, ...] = ()
    """Networks that only check them."""

    def predict_ms(self, sum_ms: float, entries: int) -> float:
        """Return the latency of a network from the sum of its entries and their number."""
        return self.factor * sum_ms + self.overhead_ms * entries

    @property
    def held_out_errors(self) -> list[float]:
        """|predicted / measured - 1| of the held-out networks."""
        return [
            abs(self.predict_ms(sample.sum_ms, sample.entries) / sample.measured_ms - 1)
            for sample in self.held_out
        ]

    @property
    def held_out_error(self) -> float | None:
        """Median of the held-out errors."""
        errors = self.held_out_errors
        return statistics.median(errors) if errors else None


def calibrated(anchors: Sequence[Sample], held_out: Sequence[Sample]) -> Calibration:
    """Fit factor and overhead on the anchors, by least squares reweighted until they stand."""
    rows = np.array([[s.sum_ms / s.measured_ms, s.entries / s.measured_ms] for s in anchors])
    scale = rows[:, 1].mean()
    rows = np.column_stack([rows[:, 0], rows[:, 1] / scale])
    pull = np.sqrt(RIDGE * len(anchors)) * np.eye(2)
    weights = np.ones(len(anchors))
    for _ in range(FIT_ROUNDS):
        root = np.sqrt(weights)
        left = np.vstack([rows * root[:, None], pull])
        right = np.concatenate([root, pull @ [1.0, 0.0]])
        fitted = np.linalg.lstsq(left, right, rcond=None)[0]
        errors = np.abs(rows @ fitted - 1.0)
        weights = USUAL_ERROR / np.maximum(errors, USUAL_ERROR)
    factor, overhead = fitted
    return Calibration(float(factor), float(overhead / scale), tuple(anchors), tuple(held_out))
