"""Calibration of the sum of a network's entries, and its check on measured networks."""

import statistics
from dataclasses import dataclass

INTERVAL_90 = 1.645
"""Half width of a 90 % interval in standard deviations."""


@dataclass(frozen=True, slots=True)
class Check:
    """One measured network, and its prediction from all samples except its own timings."""

    predicted_ms: float
    sd: float
    """Relative standard deviation of the prediction, as the model states it."""
    measured_ms: float

    @property
    def error(self) -> float:
        """Predicted / measured - 1."""
        return self.predicted_ms / self.measured_ms - 1


@dataclass(frozen=True, slots=True)
class Calibration:
    """Coefficients that turn the sum of a network's entries into its latency, and their checks.

    T(network) = factor * sum of entries + overhead * number of entries

    The factor covers the cost of memory and caches in a whole network, the overhead the cost of
    each further entry beyond its own time (a changed layout, a colder buffer).
    """

    factor: float = 1.0
    overhead_ms: float = 0.0
    """Milliseconds added for each entry of the network."""
    checks: tuple[Check, ...] = ()

    def predict_ms(self, sum_ms: float, entries: int) -> float:
        """Return the latency of a network from the sum of its entries and their number."""
        return self.factor * sum_ms + self.overhead_ms * entries

    @property
    def held_out_error(self) -> float | None:
        """Median |predicted / measured - 1| of networks predicted without their measurement."""
        errors = [abs(check.error) for check in self.checks]
        return statistics.median(errors) if errors else None

    @property
    def covered(self) -> float | None:
        """Share of the networks whose error lies in its predicted 90 % interval."""
        inside = [
            abs(check.error) <= INTERVAL_90 * check.sd for check in self.checks if check.sd > 0
        ]
        return sum(inside) / len(inside) if inside else None
