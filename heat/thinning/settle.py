"""Brings a search to its target on the device: predict, measure, correct, until they agree.

The measured frame rate must end between the target and 5 % above it. A network that misses that
window corrects the predictions, which picks the next one. What is kept in the end was measured. So
is what is out of reach: a table may be wrong, and only the smallest network of the space, measured,
is the floor.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from .limits import Cost, Limits, Pricer
from .moves import Move, State, removed_mass
from .search import Chain, fit

OVERSHOOT = 1.05
"""Largest measured / wanted frame rate that a search is content with, where the space allows it."""
STEADY = 0.0125
"""Share by which a measurement repeats; a network this near an edge is taken only at the end."""
PATIENCE = 5
"""Measurements after which half of that is enough, and no more is restored above the window: on a
disturbed machine they repeat no better."""
SURE_SDS = 2.0
"""Standard deviations by which the smallest network must miss a target that is out of reach."""
MAX_MEASUREMENTS = 12
MAX_MARGIN = 0.1
"""Largest share that a table's error may add to a target that cannot be measured."""
CHECKED_MARGIN = 0.02
"""Largest share where it will be measured: more would leave no room below the overshoot."""


@dataclass(slots=True)
class Goal:
    """What is wanted on one device."""

    prices: Pricer
    limits: Limits
    measure: Callable[[State], Cost] | None
    """Measures a state's deployed network; None where the device is not at hand."""

    def predict(self, state: State) -> Cost:
        """Return what the limits are about, as predicted."""
        return self.prices.cost(state, with_memory=self.limits.bound_memory)

    def margin(self, corrected: bool) -> float:
        """Return the share by which a prediction must pass its limit: the table's own error."""
        if corrected:
            return STEADY
        error = self.prices.table.calibration.held_out_error or 0.0
        return min(error, MAX_MARGIN if self.measure is None else CHECKED_MARGIN)


@dataclass(slots=True)
class Settled:
    """Where a search ended."""

    state: State
    index: int
    """State of the chain that the last moves began at."""
    moves: tuple[Move, ...] = ()
    measured: list[Cost | None] = field(default_factory=list)
    """What was measured on each device, None where it is not at hand."""
    broken: list[str] = field(default_factory=list)
    """Limits that are not kept, as measured, or as predicted where nothing could be."""
    surely_broken: bool = False
    """Whether a limit is broken by more than the uncertainty of the measurement."""
    at_floor: bool = False
    """The limits are out of reach: this is the smallest network of the space, and it breaks them.

    Measured wherever a device is at hand.
    """
    speedup: float = 0.0
    """Measured / wanted frame rate on the device that is closest to its limit."""
    measurements: int = 0


def settle(chain: Chain, goals: Sequence[Goal]) -> Settled:
    """Return the least thinned network that keeps every limit, measured where that is possible."""
    tried: dict[State, Settled] = {}
    best = floor = None
    measurable = any(goal.measure for goal in goals)
    while len(tried) < MAX_MEASUREMENTS:
        found = _pick(chain, goals, tried, best if best and not best.broken else None)
        if found is None:
            break
        smallest = chain.at_floor and found.state == chain.states[-1]
        if not measurable:
            found.broken = _predicted_breaks(found.state, goals)
            found.at_floor = smallest and bool(found.broken)
            return found
        _measure(found, goals)
        tried[found.state] = found
        if smallest and found.surely_broken:
            found.at_floor, floor = True, found
        if best is None or _better(found, best):
            best = found
        edge = STEADY if len(tried) < PATIENCE else 0.5 * STEADY
        if not best.broken and 1 + edge <= best.speedup <= OVERSHOOT - edge:
            break
        if not best.broken and found.index == 0:
            break
    assert best is not None
    if best.broken and floor is not None:
        best = floor
    best.measurements = len(tried)
    return best


def _pick(
    chain: Chain, goals: Sequence[Goal], tried: Mapping[State, Settled], kept: Settled | None
) -> Settled | None:
    """Return the next state to try; None where something is `kept` and nothing near is better.

    A network smaller than one that is too fast already is not tried: where the predictions ask for
    that, they contradict what was measured, and the chain is halved between what was measured to be
    too slow and what is kept.
    """
    found = _predicted(chain, goals, tried, kept)
    if kept is None or kept.speedup <= OVERSHOOT or not _predicted_breaks(kept.state, goals):
        return found
    if found is not None and found.index <= kept.index:
        return found
    slow = [other.index for other in tried.values() if other.broken and other.index < kept.index]
    between = range(max(slow, default=-1) + 1, kept.index)
    left = [index for index in between if chain.states[index] not in tried]
    if not left:
        return None
    middle = left[len(left) // 2]
    return Settled(chain.states[middle], middle)


def _predicted(
    chain: Chain, goals: Sequence[Goal], tried: Mapping[State, Settled], kept: Settled | None
) -> Settled | None:
    """Return the state to try by the predictions."""

    @cache
    def costs(state: State) -> list[Cost]:
        return [goal.predict(state) for goal in goals]

    @cache
    def good(state: State) -> bool:
        return not any(
            goal.limits.broken(cost, goal.margin(bool(tried)))
            for goal, cost in zip(goals, costs(state), strict=True)
        )

    def load(state: State) -> float:
        return max(goal.limits.load(cost) for goal, cost in zip(goals, costs(state), strict=True))

    def inside(state: State) -> bool:
        return load(state) * (OVERSHOOT - STEADY) >= 1.0 and good(state)

    index = chain.reach(good)
    if index is None:
        return _without_margin(chain, goals, tried, kept)
    before = chain.states[max(0, index - 1)]
    if all(goal.limits.fits_in(goal.predict(before)) for goal in goals):
        found = chain.states[index] if kept is None else kept.state
        slower = load(found) * (1 + STEADY)
        lost = removed_mass(chain.states[0], found, chain.logits)

        def better(state: State) -> bool:
            return (
                len(tried) < PATIENCE
                and load(state) > slower
                and good(state)
                and removed_mass(chain.states[0], state, chain.logits) < lost
            )

        fitted = fit(chain, index, good, inside, tried, better)
        if fitted is not None:
            return Settled(fitted.state, fitted.start, fitted.moves)
        if kept is not None and (kept.index <= index or chain.states[index] in tried):
            return None
    while chain.states[index] in tried:
        index += 1
        if index == len(chain.states) and not chain.extend():
            return _without_margin(chain, goals, tried, kept)
    return Settled(chain.states[index], index)


def _without_margin(
    chain: Chain, goals: Sequence[Goal], tried: Mapping[State, Settled], kept: Settled | None
) -> Settled | None:
    """Return what is left to try where no untried state is predicted to pass with its margin.

    The smallest network first, where it can be measured; then whatever is predicted just to pass.
    """
    if kept is not None:
        return None
    last = len(chain.states) - 1
    smallest = Settled(chain.states[last], last)
    measurable = any(goal.measure for goal in goals)
    if measurable and smallest.state not in tried:
        return smallest
    for index, state in enumerate(chain.states):
        if state not in tried and not _predicted_breaks(state, goals):
            return Settled(state, index)
    return None if measurable else smallest


def _measure(found: Settled, goals: Sequence[Goal]) -> None:
    """Measure a state wherever that is possible, and correct the predictions by it."""
    load = 0.0
    for goal in goals:
        predicted = goal.predict(found.state)
        measured = goal.measure(found.state) if goal.measure else None
        found.measured.append(measured)
        cost = measured or predicted
        device = f"{goal.prices.table.conditions.device}: " if len(goals) > 1 else ""
        found.broken += [f"{device}{reason}" for reason in goal.limits.broken(cost)]
        found.surely_broken |= bool(goal.limits.broken(_at_best(cost)))
        load = max(load, goal.limits.load(cost))
        if measured is not None:
            goal.prices.correct(found.state, measured)
            print(
                f"measured {measured.fps:.2f} FPS where {predicted.fps:.2f} was predicted on "
                f"{goal.prices.table.conditions.device}",
                file=sys.stderr,
            )
    found.speedup = 1.0 / load


def _at_best(cost: Cost) -> Cost:
    """Return a cost whose speed is higher by as much as its measurement may be wrong."""
    room = 1 + max(STEADY, SURE_SDS * cost.sd)
    return replace(cost, fps=cost.fps * room, p50_ms=cost.p50_ms / room, p95_ms=cost.p95_ms / room)


def _better(found: Settled, best: Settled) -> bool:
    """Whether a measured state is the better answer: limits kept, then nearest to the window."""
    if bool(found.broken) != bool(best.broken):
        return not found.broken
    middle = (1 + OVERSHOOT) / 2
    return abs(found.speedup - middle) < abs(best.speedup - middle)


def _predicted_breaks(state: State, goals: Sequence[Goal]) -> list[str]:
    return [reason for goal in goals for reason in goal.limits.broken(goal.predict(state))]
