"""The slow drift of a machine's speed, told by the reference network.

One timing of the reference is off by some percent, as every timing is; the machine's clock changes
over minutes. So neighbours in time are taken together before anything is scaled.
"""

import statistics
from collections.abc import Sequence

SAME_STATE = 0.08
"""Largest deviation of the reference network at which the machine counts as in the same state.

Within it the clock drifted, and times are scaled. Beyond it something else changed, such as the
cores that a virtual machine was given: operators then change by different factors.
"""

SHARE = 0.5
"""Share of the reference's deviation that other networks show too; the rest is its own noise.

Of ten runs of `benchmarks/latency_sum.py` the errors were lowest at one half: 1 scales noise into
the times, 0 leaves the drift in them.
"""

WINDOW = 7
"""Neighbours in time, itself included, that a running median takes in."""


def running_median(values: Sequence[float], window: int = WINDOW) -> list[float]:
    """Return, for each value, the median of it and its neighbours in time.

    At both ends the window is shifted, not cut: every median is of as many values as there are.
    """
    last = max(0, len(values) - window)
    starts = (min(max(0, index - window // 2), last) for index in range(len(values)))
    return [statistics.median(values[start : start + window]) for start in starts]


def same_state(reference_ms: float, other_ms: float) -> bool:
    """Whether two times of the reference network differ by no more than the clock's drift."""
    return abs(reference_ms / other_ms - 1) <= SAME_STATE


def scale_to(wanted_ms: float, reference_ms: float) -> float:
    """Return the factor that takes times measured at one speed of the reference to another.

    1 where the machine was in another state: the reference then tells nothing of other networks.
    """
    if reference_ms <= 0 or wanted_ms <= 0 or not same_state(reference_ms, wanted_ms):
        return 1.0
    return float((wanted_ms / reference_ms) ** SHARE)
