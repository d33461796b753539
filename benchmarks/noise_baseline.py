"""The measuring and thinning of HEAT 0.1.0 on the simulated machine, for comparison.

Every entry is timed until its interval is 3 % wide; a row is one timing, scaled to one speed of the
reference network unless its own speed differs too much; a factor and an overhead are fitted on ten
networks; the greedy chain ends where no single move lowers the latency; a measured network corrects
one global factor.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from simulated import SimulatedMeter

from heat.thinning.moves import (
    Logits,
    Move,
    State,
    ThinningRules,
    attention_moves,
    layer_move,
    removed_mass,
    stage_importance,
    stage_moves,
)
from heat.thinning.search import Chain, fit
from heat.thinning.settle import MAX_MEASUREMENTS, OVERSHOOT, STEADY
from latency_tables.plan import batches_of
from latency_tables.probe.measure import MAX_ROUNDS, ROUNDS
from latency_tables.terms import terms
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.operators.entries import Entry
from supernet.heatdetr.supernet import SearchSpace

SAME_STATE = 0.25
MIN_GAIN = 1e-3
ANCHORS = 10


@dataclass(slots=True)
class OldTable:
    """A table of version 0.1.0: one timing for each entry, a factor and an overhead."""

    times_ms: dict[Entry, float]
    factor: float
    overhead_ms: float
    reference_ms: float
    error: float
    speed: float = 1.0
    _sums: dict[Architecture, tuple[float, int]] = field(default_factory=dict, init=False)
    """Sum of the entries' milliseconds, and their number, of each network predicted so far."""

    def ms(self, network: Architecture) -> float:
        """Return the predicted milliseconds."""
        if network not in self._sums:
            entries = network.entries().values()
            self._sums[network] = sum(self.times_ms[entry] for entry in entries), len(entries)
        total, count = self._sums[network]
        return self.speed * (self.factor * total + self.overhead_ms * count)


def scale(wanted_ms: float, reference_ms: float) -> float:
    """Return the factor from one speed of the reference to another, as in version 0.1.0."""
    same = abs(reference_ms / wanted_ms - 1) <= SAME_STATE
    return wanted_ms / reference_ms if same else 1.0


def old_table(
    meter: SimulatedMeter, entries: Sequence[Entry], networks: Sequence[Architecture]
) -> OldTable:
    """Measure a table as in version 0.1.0."""
    rows: dict[Entry, tuple[float, float]] = {}

    def measure(batch: Sequence[Entry]) -> None:
        found = meter.batch(batch, ROUNDS, MAX_ROUNDS)
        reference_ms = found.references["network"].ms
        for entry in batch:
            total = sum(sign * found.timings[p.key].ms for p, sign in terms(entry).items())
            rows[entry] = (max(0.0, total), reference_ms)

    def speed() -> float:
        known = sorted(reference_ms for _, reference_ms in rows.values())
        return known[len(known) // 4]

    for batch in batches_of(entries):
        measure(batch)
    for _ in range(2):
        strays = [e for e, (_, ref) in rows.items() if abs(ref / speed() - 1) > SAME_STATE]
        if not strays:
            break
        for batch in batches_of(strays):
            measure(batch)
    base = speed()
    times = {entry: ms * scale(base, reference_ms) for entry, (ms, reference_ms) in rows.items()}
    sums, measured = [], []
    for network in networks:
        sample = meter.network(network).networks[0]
        sums.append((sum(times[e] for e in network.entries().values()), len(network.entries())))
        measured.append(sample.ms * scale(base, sample.state[0]))
    left = np.array([[s / ms, n / ms] for (s, n), ms in zip(sums, measured, strict=True)])
    weights = np.ones(ANCHORS)
    for _ in range(20):
        root = np.sqrt(weights)
        ridge = np.sqrt(1e-3 * ANCHORS) * np.diag([1.0, left[:ANCHORS, 1].mean()])
        rows_ = np.vstack([left[:ANCHORS] * root[:, None], ridge])
        fitted = np.linalg.lstsq(rows_, np.concatenate([root, ridge @ [1.0, 0.0]]), rcond=None)[0]
        weights = 0.02 / np.maximum(np.abs(left[:ANCHORS] @ fitted - 1), 0.02)
    errors = np.abs(left[ANCHORS:] @ fitted - 1)
    return OldTable(times, float(fitted[0]), float(fitted[1]), base, float(np.median(errors)))


def old_moves(
    state: State, space: SearchSpace, logits: Logits, rules: ThinningRules, table: OldTable
) -> list[Move]:
    """Return the moves that version 0.1.0 considered: those that lower the latency alone."""

    def ms(of: State) -> float:
        return table.ms(of.architecture(space, logits))

    now = ms(state)
    layer = layer_move(state, logits, rules)
    every = [layer] if layer is not None else []
    every.extend(attention_moves(state, space))
    order = sorted((1, 2, 3, 4), key=lambda n: stage_importance(state, n, logits, rules.stage_rule))
    for stage in order:
        every.extend(stage_moves(state, stage, logits, rules))
    return [move for move in every if ms(move.after) < now * (1 - MIN_GAIN)]


def old_chain(space: SearchSpace, logits: Logits, rules: ThinningRules, table: OldTable) -> Chain:
    """Return the whole chain of version 0.1.0."""

    def ms(state: State) -> float:
        return table.ms(state.architecture(space, logits))

    def drop(before: State, after: State) -> float:
        return removed_mass(before, after, logits)

    chain = Chain(space, logits, rules, ms, drop)
    while True:
        state = chain.states[-1]
        moves = old_moves(state, space, logits, rules, table)
        if not moves:
            chain.at_floor = True
            return chain

        def price(move: Move, state: State = state) -> float:
            gain = 1000.0 / ms(move.after) - 1000.0 / ms(state)
            return max(drop(state, move.after), 0.01) / gain

        chain.states.append(min(moves, key=price).after)


def old_settle(
    chain: Chain, table: OldTable, meter: SimulatedMeter, target_fps: float
) -> tuple[Architecture | None, bool]:
    """Return the final network of version 0.1.0, and whether it reports a target out of reach."""
    tried: dict[State, float] = {}
    table.speed = 1.0

    def fps(state: State) -> float:
        return 1000.0 / chain.latency_ms(state)

    while len(tried) < MAX_MEASUREMENTS:
        margin = STEADY if tried else min(table.error, 0.02)

        def good(state: State, margin: float = margin) -> bool:
            return fps(state) >= target_fps * (1 + margin)

        def inside(state: State, good: object = good) -> bool:
            return fps(state) <= target_fps * (OVERSHOOT - STEADY) and good(state)  # type: ignore[operator]

        index = next((i for i, state in enumerate(chain.states) if good(state)), None)
        at_floor = index is None
        if index is None:
            state = chain.states[-1]
            if state in tried:
                break
        else:
            fitted = fit(chain, index, good, inside, list(tried))
            state = fitted.state if fitted is not None else chain.states[index]
            while state in tried and index + 1 < len(chain.states):
                index += 1
                state = chain.states[index]
        network = state.architecture(chain.space, chain.logits)
        samples = [meter.network(network).networks[0] for _ in range(3)]
        ms = statistics.median(s.ms * scale(table.reference_ms, s.state[0]) for s in samples)
        tried[state] = 1000.0 / ms / target_fps
        table.speed *= ms / table.ms(network)
        if at_floor and tried[state] < 1.0:
            return network, True
        if 1 + STEADY <= tried[state] <= OVERSHOOT - STEADY:
            return network, False
    kept = {state: ratio for state, ratio in tried.items() if ratio >= 1.0}
    if not kept:
        return None, False
    best = min(kept, key=lambda state: abs(kept[state] - 1.025))
    return best.architecture(chain.space, chain.logits), False
