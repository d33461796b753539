"""Several timings of one network, each in a process and in a state of the machine of its own.

Where a process lays its memory, and what else runs, makes a network some percent faster or slower.
How a network follows the machine's state is known from its operators only roughly, so a timing
counts the more, the nearer its state is to that of the table.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from latency_tables.pricing import Latency, Pricing
from latency_tables.samples import NetworkSample
from supernet.heatdetr.architecture import Architecture

AGREED_SD = 0.006
"""Relative standard deviation of their median at which timings agree."""
WAIT_S = 2.0
"""Pause before a further timing, in which a state of the machine may pass."""
STATE_DOUBT = 0.15
"""Share of a state's log slowness by which a network may follow it differently than predicted."""

Timed = TypeVar("Timed")


def until_agreed(
    take: Callable[[], Timed],
    latency_of: Callable[[Sequence[Timed]], Latency],
    *,
    needed: int,
    most: int,
    enough: Callable[[Latency], bool],
    wait: Callable[[], None] = lambda: None,
) -> list[Timed]:
    """Take timings until at least `needed` agree, there are `most`, or `enough` is true.

    `wait` is called before each that is more than needed: another state of the machine
    tells more.
    """
    found: list[Timed] = []
    while len(found) < most:
        if len(found) >= needed:
            wait()
        found.append(take())
        latency = latency_of(found)
        if enough(latency) or (len(found) >= needed and latency.sd <= AGREED_SD):
            break
    return found


def measured_latency(
    pricing: Pricing, architecture: Architecture, samples: Sequence[NetworkSample]
) -> Latency:
    """Return a network's latency over a table's states: the weighted median of its timings."""
    slow = np.log([pricing.slowdown(architecture, sample.state) for sample in samples])
    logs = np.log([sample.ms for sample in samples]) - slow
    variance = np.square([sample.sd for sample in samples]) + np.square(STATE_DOUBT * slow)
    weights = 1.0 / variance
    weights /= weights.sum()
    order = np.argsort(logs)
    reached = np.cumsum(weights[order]) - 0.5 * weights[order]
    middle = float(np.interp(0.5, reached, logs[order]))
    seen = float(weights @ np.square(logs - middle)) * float(np.square(weights).sum())
    stated = float(np.square(weights) @ np.square([sample.sd for sample in samples]))
    # Doubt of the states is shared by all timings: it only cancels between slower and faster ones.
    doubt = STATE_DOUBT * float(weights @ slow)
    sd = math.sqrt((stated if len(samples) == 1 else max(seen, 0.5 * stated)) + doubt**2)
    return pricing.latency_of(architecture, math.exp(middle), sd)
