"""Compares two tables, entry by entry, at equal speed of the machine."""

import math
import statistics
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from supernet.errors import TableError

from .table import LatencyTable

AGREE = 0.05
"""Two profiles of one machine agree if the median entry differs by no more than this share."""
SMALLEST_MS = 0.02
"""Entries below it in both tables are left out: they are mostly noise."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Differences of table B from table A."""

    entries: int
    """Number of entries that are in both tables and not below `SMALLEST_MS`."""
    different: str
    """Where the conditions differ; empty for the same machine and setting."""
    speed: float
    """Reference network of A / of B: how much faster the machine was for B; NaN if unknown."""
    median_difference: float
    """Median |B / A - 1| of the entries, at equal speed."""
    p95_difference: float
    median_difference_raw: float
    """The same without equalising the speed."""
    by_operator: dict[str, float]
    """Median B / A of each operator, at equal speed."""

    @property
    def agree(self) -> bool:
        """Whether the tables have the same conditions and their entries agree."""
        return not self.different and self.median_difference <= AGREE


def compare(a: LatencyTable, b: LatencyTable) -> Comparison:
    """Compare the entries that both tables have; none in common is a `TableError`."""
    times_a, times_b = a.times_ms(), b.times_ms()
    both = [e for e in times_a if e in times_b and max(times_a[e], times_b[e]) >= SMALLEST_MS]
    if not both:
        raise TableError(
            f"{a.conditions.stem} and {b.conditions.stem} have no entry in common: profile both "
            "at one input size"
        )
    known = a.reference_ms > 0 and b.reference_ms > 0
    # Under different conditions speeds are not equalised: their difference is the result.
    different = a.conditions.differences(b.conditions)
    speed = a.reference_ms / b.reference_ms if known else math.nan
    scale = speed if known and not different else 1.0
    ratios = defaultdict(list)
    raw, equal = [], []
    for entry in both:
        ratio = times_b[entry] / max(times_a[entry], 1e-6)
        raw.append(abs(ratio - 1))
        equal.append(abs(ratio * scale - 1))
        ratios[entry.op].append(ratio * scale)
    return Comparison(
        entries=len(both),
        different=different,
        speed=speed,
        median_difference=statistics.median(equal),
        p95_difference=float(np.percentile(equal, 95)),
        median_difference_raw=statistics.median(raw),
        by_operator={op: statistics.median(found) for op, found in sorted(ratios.items())},
    )
