"""What a table is worth: whole networks that were measured, each against its prediction."""

import statistics
from dataclasses import dataclass

INTERVAL_90 = 1.645
"""Half width of a 90 % interval in standard deviations."""


@dataclass(frozen=True, slots=True)
class Check:
    """One measured network, predicted from everything but its own timings."""

    predicted_ms: float
    sd: float
    """Relative standard deviation that the prediction stated."""
    measured_ms: float

    @property
    def error(self) -> float:
        """Predicted / measured - 1."""
        return self.predicted_ms / self.measured_ms - 1


@dataclass(frozen=True, slots=True)
class Calibration:
    """What turns the sum of a network's entries into its latency, and how well that works.

    T(network) = factor * sum of entries + overhead * number of entries

    The factor takes up what memory and caches cost in a whole network, the overhead what each
    further entry costs beyond its own time (a changed layout, a colder buffer).
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
        """Share of the networks whose error lies in the 90 % interval that was stated for it."""
        inside = [
            abs(check.error) <= INTERVAL_90 * check.sd for check in self.checks if check.sd > 0
        ]
        return sum(inside) / len(inside) if inside else None
