"""The machine's speed, told by the reference network that is timed with everything else.

The clock of a machine wanders by ten percent and more from minute to minute. The ratio of two
networks that are run in turns does not: it stays within 1 % between processes. So every time is
kept with the reference network's, measured in the same rounds, and compared at one speed of it.
"""

SAME_STATE = 0.25
"""Largest deviation of the reference network that the clock explains.

Beyond it something else changed, such as the cores that a virtual machine was given: operators
then change by different factors.
"""


def same_state(reference_ms: float, other_ms: float) -> bool:
    """Whether two times of the reference network differ by no more than the clock explains."""
    return abs(reference_ms / other_ms - 1) <= SAME_STATE


def scale_to(wanted_ms: float, reference_ms: float) -> float:
    """Return the factor that takes times measured at one speed of the reference to another.

    1 where the machine was in another state: the reference then tells nothing of other networks.
    """
    if reference_ms <= 0 or wanted_ms <= 0 or not same_state(reference_ms, wanted_ms):
        return 1.0
    return wanted_ms / reference_ms
