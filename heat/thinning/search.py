"""The greedy search of spec section 9, and the fit of its end to the target.

The chain of greedy moves does not depend on any target, so a run for one frame rate passes through
the results of every lower one. A move is a coarse step, though: the state that first reaches the
target may overshoot it. `fit` therefore looks at the few moves, forwards and backwards, around that
point for the state that loses least and lands within the window above the target.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from supernet.heatdetr.supernet import SearchSpace

from .greedy import Trial, thin_step
from .moves import Logits, Move, State, ThinningRules, every_move, removed_mass

Method = Literal["greedy", "tpe", "nsga2", "random"]
"""The paper's search, or an Optuna study."""

LatencyMs = Callable[[State], float]
"""Predicted milliseconds of a state."""
ApDrop = Callable[[State, State], float]
"""Accuracy lost from one state to another, in points or a proxy's equivalent."""

SHORTLIST = 6
"""States in the window that the evaluator, not only the importance mass, looks at."""
BEAM = 24
"""States that are followed from one move to the next."""
STEPS = 10
"""Most moves made one after the other to land between two states of the chain."""


@dataclass(slots=True)
class Chain:
    """The states of the greedy search, extended as far as somebody asks."""

    space: SearchSpace
    logits: Logits
    rules: ThinningRules
    latency_ms: LatencyMs
    ap_drop: ApDrop
    on_step: Callable[[list[Trial]], None] = lambda trials: None
    """Called with the trials of each new step, the chosen one marked."""
    states: list[State] = field(default_factory=list)
    trials: list[list[Trial]] = field(default_factory=list)
    """Trials that led from each state to the next."""
    at_floor: bool = False
    """The last state is the smallest network: no reduction is left."""

    def __post_init__(self) -> None:
        """Start with everything alive."""
        self.states.append(State.full(self.space))

    def extend(self) -> bool:
        """Make one more greedy move; return False at the smallest network of the space."""
        if not self.at_floor:
            trials = thin_step(
                len(self.trials),
                self.states[-1],
                self.space,
                self.logits,
                self.rules,
                self.latency_ms,
                self.ap_drop,
            )
            self.at_floor = not trials
            if trials:
                self.trials.append(trials)
                self.states.append(next(t for t in trials if t.chosen).move.after)
                self.on_step(trials)
        return not self.at_floor

    def jump(self, state: State) -> None:
        """Let a state that was found in another way follow on the first; greedy moves go on there.

        No trials lead to it.
        """
        self.states[1:] = [state]
        self.trials[:] = [[]]
        self.at_floor = False

    def chosen(self, index: int) -> Trial | None:
        """Return the trial whose move led to a state; None at the start and after a jump."""
        trials = self.trials[index - 1] if index else []
        return next((trial for trial in trials if trial.chosen), None)

    def reach(self, good: Callable[[State], bool]) -> int | None:
        """Return the index of the first state that is good, extending; None where none is."""
        index = 0
        while not good(self.states[index]):
            index += 1
            if index == len(self.states) and not self.extend():
                return None
        return index

    def ledger(self, upto: int) -> list[Trial]:
        """Return the trials of the moves that lead to a state."""
        return [trial for trials in self.trials[:upto] for trial in trials]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A state in the window, and the moves that lead to it from a state of the chain."""

    state: State
    start: int
    """Index in the chain where the moves begin."""
    moves: tuple[Move, ...]


def fit(
    chain: Chain,
    index: int,
    good: Callable[[State], bool],
    inside: Callable[[State], bool],
    tried: Collection[State] = (),
    better: Callable[[State], bool] = lambda state: False,
) -> Fitted | None:
    """Return the least lossy state near `chain.states[index]` that is inside the window.

    `good` says which states reach the target, `inside` which of them are not too fast either.
    Looks at the state itself, then at one and two moves away from it and from the state before; a
    restored part counts as a gain. Where nothing near is inside, goes on from both by moves that do
    not jump over the window. Where that leads nowhere, the least lossy of the states it came by
    that are `better` than what there is; None where there is none.
    """
    if inside(chain.states[index]) and chain.states[index] not in tried:
        return Fitted(chain.states[index], index, ())
    full = chain.states[0]
    found: dict[State, Fitted] = {}
    outside: dict[State, Fitted] = {}

    def take(start: int, paths: Iterable[tuple[Move, ...]]) -> bool:
        known = len(found)
        for moves in paths:
            state = moves[-1].after
            if state in found or state in outside or state in tried:
                continue
            if inside(state):
                found[state] = Fitted(state, start, moves)
            elif better(state):
                outside[state] = Fitted(state, start, moves)
        return len(found) > known

    before = max(0, index - 1)
    for depth in (1, 2):
        for start in sorted({before, index}):
            take(start, _around(chain, start, depth))
        if found:
            break
    else:
        for start, grows in ((before, False), (index, True)):
            for paths in _slowly(chain, start, good, grows=grows):
                if take(start, paths):
                    break
    if not found and not outside:
        return None
    ranked = sorted((found or outside).values(), key=lambda fitted: _rank(chain, full, fitted))
    origin = chain.states[before]
    short = ranked[:SHORTLIST]
    losses = [chain.ap_drop(origin, fitted.state) for fitted in short]
    return short[losses.index(min(losses))]


def _rank(chain: Chain, full: State, fitted: Fitted) -> tuple[float, float]:
    lost = removed_mass(full, fitted.state, chain.logits)
    return lost, -chain.latency_ms(fitted.state)


def _around(chain: Chain, start: int, depth: int) -> Iterator[tuple[Move, ...]]:
    """Yield the paths of one or two moves from a state of the chain."""
    full = chain.states[0]
    first = [(move,) for move in _moves(chain, chain.states[start])]
    if depth == 1:
        yield from first
        return
    first.sort(key=lambda path: removed_mass(full, path[0].after, chain.logits))
    for (move,) in first[:BEAM]:
        for second in _moves(chain, move.after):
            yield move, second


def _slowly(
    chain: Chain, start: int, good: Callable[[State], bool], *, grows: bool
) -> Iterator[list[tuple[Move, ...]]]:
    """Yield longer and longer paths from a state, made of moves that do not cross the target.

    From a state that is too slow each move saves time; from a good one, which `grows`, each takes
    some. The paths are a beam of those that lose least mass, or gain most, for that time.
    """
    origin = chain.states[start]
    origin_ms = chain.latency_ms(origin)
    sign = -1 if grows else 1

    def price(path: tuple[Move, ...]) -> float:
        after = path[-1].after
        saved = math.log(origin_ms / chain.latency_ms(after))
        return sign * removed_mass(origin, after, chain.logits) / saved

    beam: list[tuple[Move, ...]] = [()]
    for _ in range(STEPS):
        longer: dict[State, tuple[Move, ...]] = {}
        for path in beam:
            here = path[-1].after if path else origin
            here_ms = chain.latency_ms(here)
            for move in _moves(chain, here):
                if sign * (here_ms - chain.latency_ms(move.after)) > 0:
                    longer.setdefault(move.after, (*path, move))
        yield list(longer.values())
        same_side = [path for path in longer.values() if good(path[-1].after) == grows]
        beam = sorted(same_side, key=price)[:BEAM]


def _moves(chain: Chain, state: State) -> Iterator[Move]:
    return every_move(state, chain.space, chain.logits, chain.rules)
