"""Timings of single entries and whole networks, each with the state of the machine at that time.

The state is the milliseconds of the reference models (`references.py`) in the same rounds, in the
order of `REFERENCES`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.operators.entries import Entry

from .probe.setting import REFERENCES

Array = NDArray[np.float64]

State = tuple[float, ...]
"""Milliseconds of each reference; in tables of version 2 the reference network's only."""


@dataclass(frozen=True, slots=True)
class EntrySample:
    """One timing of an entry."""

    entry: Entry
    ms: float
    """Signed sum of the probes' medians; it may be negative where the entry is tiny."""
    sd_ms: float
    """Standard deviation of that sum, from the probes' confidence intervals."""
    state: State
    """Of the machine, in the same rounds."""
    date: str
    heat: str
    """HEAT version that measured."""


@dataclass(frozen=True, slots=True)
class NetworkSample:
    """One timing of a whole deployed network, from image to boxes, in a fresh process."""

    architecture: Architecture
    ms: float
    sd: float
    """Relative standard deviation of the measurement."""
    state: State
    date: str


def slowness(states: Sequence[State], base: State) -> Array:
    """Return log(references / base), shape [len(states), 4].

    For a reference that a sample lacks, the slowness of the reference network is used.
    """
    found = np.zeros((len(states), len(REFERENCES)))
    for row, state in enumerate(states):
        for index in range(len(REFERENCES)):
            known = index < min(len(state), len(base)) and state[index] > 0 and base[index] > 0
            source = index if known else 0
            if state and base and state[source] > 0 and base[source] > 0:
                found[row, index] = np.log(state[source] / base[source])
    return found


def base_state(states: Sequence[State]) -> State:
    """Return the median of each reference: the state that a table's milliseconds refer to."""
    return tuple(
        float(np.median(values))
        for index in range(len(REFERENCES))
        if (values := [state[index] for state in states if len(state) > index and state[index] > 0])
    )
