"""Predicted latency of a network on a device, for search, prediction, checks and report.

A machine's speed varies. A table keeps the states that the machine was in while it was measured
(`LatencyTable.history`), and a network's latency has a distribution over them: each family of
operators is slowed by its own sensitivity. Promised frame rates are sustained ones, which the
machine keeps for 90 % of the time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from supernet.heatdetr.architecture import Architecture

from .model import LatencyModel
from .samples import Array, State
from .table import LatencyTable

SUSTAINED = 0.9
"""Share of the time that the sustained frame rate is kept (p10 of the rate, p90 of the latency)."""
MOST_STATES = 400
"""States of the history that a distribution is taken over."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of one network, from uint8 image to boxes."""

    typical_ms: float
    """In the median state."""
    sustained_ms: float
    """Not exceeded for 90 % of the time."""
    best_ms: float
    """Not exceeded for 10 % of the time."""
    sd: float
    """Relative standard deviation of all three."""


class Pricing:
    """Predicts networks by one table; after a change of the table a new one is needed."""

    def __init__(self, table: LatencyTable) -> None:
        """Fit the table's model, if it is not yet, and read its states."""
        self.table = table
        self._model: LatencyModel | None = table.model
        self._seconds, self._states = _thinned(table)
        self._known: dict[Architecture, Latency] = {}

    def latency(self, architecture: Architecture) -> Latency:
        """Return a network's predicted latency; a missing row is a `TableError`."""
        if architecture not in self._known:
            self._known[architecture] = self._price(architecture)
        return self._known[architecture]

    def _price(self, architecture: Architecture) -> Latency:
        entries = architecture.entries()
        if self._model is None:
            ms = self.table.predict_ms(architecture)
            error = self.table.calibration.held_out_error or 0.0
            return Latency(ms, ms, ms, error)
        self.table.sum_ms(architecture)  # raises where a row is missing
        found = self._model.predict(self._model.counts(entries))
        return self.latency_of(architecture, found.ms, found.sd)

    def slowdowns(self, architecture: Architecture) -> Array:
        """Return a network's time in each state of the history over that at the base state."""
        return self._slowdowns(architecture, self._states)

    def slowdown(self, architecture: Architecture, state: State) -> float:
        """Return a network's time in one state over that at the base state."""
        return float(self._slowdowns(architecture, [state])[0])

    def _slowdowns(self, architecture: Architecture, states: Sequence[State]) -> Array:
        if self._model is None or not states:
            return np.ones(max(1, len(states)))
        return self._model.network_slowdowns(self._model.counts(architecture.entries()), states)

    def latency_of(self, architecture: Architecture, base_ms: float, sd: float) -> Latency:
        """Return the latency of a network of which the milliseconds at the base state are given."""
        slow = self.slowdowns(architecture)
        best, typical, sustained = (
            weighted_quantile(slow, self._seconds, q) for q in (1 - SUSTAINED, 0.5, SUSTAINED)
        )
        return Latency(base_ms * typical, base_ms * sustained, base_ms * best, sd)


def _thinned(table: LatencyTable) -> tuple[Array, list[State]]:
    """Return seconds and states of the history, neighbours merged to at most `MOST_STATES`."""
    moments = table.history
    size = -(-len(moments) // MOST_STATES) if moments else 1
    seconds, states = [], []
    for start in range(0, len(moments), size):
        part = moments[start : start + size]
        part = [moment for moment in part if len(moment.state) == len(part[-1].state)]
        weights = np.array([max(1e-9, moment.seconds) for moment in part])
        logs = np.log([moment.state for moment in part])
        states.append(tuple(float(x) for x in np.exp(weights @ logs / weights.sum())))
        seconds.append(float(weights.sum()))
    return np.array(seconds or [1.0]), states


def weighted_quantile(values: Array, weights: Array, share: float) -> float:
    """Return the smallest of the values up to which at least `share` of the weight lies."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / weights.sum()
    return float(values[order][min(len(order) - 1, int(np.searchsorted(reached, share)))])
