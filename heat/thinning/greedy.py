"""One step of device-adaptive thinning (paper Algorithm 1, corrected in spec section 9).

While the predicted frame rate is below the target, the admissible move is made that loses the least
accuracy for each frame per second it gains. A latency table has bumps: a row that was measured
while the machine was slower makes the network behind it look no faster. A move that is lost in a
bump is looked through: it is offered as many times at once as it takes to shorten the prediction.
Where nothing shortens it, the step is made all the same, so that the steps always end at the
smallest network of the space and never at a bump.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain

from supernet.heatdetr.supernet import SearchSpace

from .moves import (
    Logits,
    Move,
    State,
    ThinningRules,
    attention_moves,
    importance,
    layer_move,
    repeated,
    stage_importance,
    stage_moves,
)

MIN_GAIN = 1e-3
"""A move must lower the predicted latency by more than this share."""
MIN_DROP = 0.01
"""Floor of AP_drop in points, so that a free move does not hide its gain."""

STAGES = (1, 2, 3, 4)


@dataclass(frozen=True, slots=True)
class Trial:
    """One line of the ledger: a move that was scored in one step."""

    step: int
    move: Move
    importance: float
    """Importance M of the position, or of the stage for a width move."""
    ap_drop: float
    """Accuracy lost, in AP points or the proxy's equivalent."""
    ms: float
    fps: float
    ratio: float
    """max(AP_drop, 0.01) per frame per second gained."""
    chosen: bool
    reason: str
    seconds: float = field(default=0.0, compare=False)
    """Time that scoring the move took."""


def candidate_moves(
    state: State,
    space: SearchSpace,
    logits: Logits,
    rules: ThinningRules,
    shortens: Callable[[Move], bool],
) -> list[Move]:
    """Return LR, AR, and the moves of the least important stage that has an admissible one.

    A move that does not shorten the latency is repeated until it does, and is left out only where
    no number of repetitions does.
    """
    found: list[Move] = []

    def offer(move: Move) -> bool:
        sizes = chain((move,), repeated(move, logits, rules))
        first = next((size for size in sizes if shortens(size)), None)
        if first is None or any(first.after == other.after for other in found):
            return False
        found.append(first)
        return True

    layer = layer_move(state, logits, rules)
    if layer is not None:
        offer(layer)
    for move in attention_moves(state, space):
        offer(move)
    order = sorted(
        STAGES, key=lambda stage: stage_importance(state, stage, logits, rules.stage_rule)
    )
    for stage in order:
        offered = [offer(move) for move in stage_moves(state, stage, logits, rules)]
        if any(offered) and rules.stage_rule != "all":
            break
    return found


def score_move(
    step: int,
    state: State,
    move: Move,
    logits: Logits,
    rules: ThinningRules,
    latency_ms: Callable[[State], float],
    ap_drop: Callable[[State, State], float],
) -> Trial:
    """Score a move: accuracy lost for each frame per second gained."""
    started = time.monotonic()
    ms = latency_ms(move.after)
    gain = 1000.0 / ms - 1000.0 / latency_ms(state)
    drop = ap_drop(state, move.after)
    if move.position is None:
        weight = stage_importance(state, move.stage, logits, rules.stage_rule)
    else:
        place = (move.stage, move.position)
        holder = state if place in state.allowed else move.after
        weight = importance(holder, place, logits)
    ratio = max(drop, MIN_DROP) / gain if gain > 0 else math.inf
    seconds = time.monotonic() - started
    return Trial(step, move, weight, drop, ms, 1000.0 / ms, ratio, False, "", seconds)


def thin_step(
    step: int,
    state: State,
    space: SearchSpace,
    logits: Logits,
    rules: ThinningRules,
    latency_ms: Callable[[State], float],
    ap_drop: Callable[[State, State], float],
) -> list[Trial]:
    """Score the moves of one step; the chosen one is marked.

    An empty list means that the state is the smallest network: no reduction is left.
    """
    ms_before = latency_ms(state)

    def shortens(move: Move) -> bool:
        return latency_ms(move.after) < ms_before * (1.0 - MIN_GAIN)

    def scored(moves: list[Move]) -> list[Trial]:
        return [score_move(step, state, move, logits, rules, latency_ms, ap_drop) for move in moves]

    moves = candidate_moves(state, space, logits, rules, shortens)
    if moves:
        trials = scored(moves)
        best = min(trials, key=lambda trial: (trial.ratio, trial.ms))
        return [
            _marked(trial, best, "least AP lost per FPS gained", "dearer per FPS gained")
            for trial in trials
        ]
    left = list(_reductions(state, space, logits, rules))
    if not left:
        return []
    fastest_ms = min(latency_ms(move.after) for move in left)
    trials = scored([move for move in left if latency_ms(move.after) == fastest_ms])
    best = min(trials, key=lambda trial: trial.ap_drop)
    why = "no move shortens the predicted latency"
    return [
        _marked(trial, best, f"{why}: the fastest is taken", f"{why}: as fast, more AP lost")
        for trial in trials
    ]


def _marked(trial: Trial, best: Trial, taken: str, left: str) -> Trial:
    """Return a trial with its reason, marked if it is the best."""
    reason = taken if trial is best else left
    if trial.move.steps > 1:
        reason += f"; {trial.move.steps} steps at once, fewer shorten nothing"
    return replace(trial, chosen=trial is best, reason=reason)


def _reductions(
    state: State, space: SearchSpace, logits: Logits, rules: ThinningRules
) -> Iterator[Move]:
    """Yield every single reduction of any stage, whatever it is predicted to gain."""
    for stage in STAGES:
        yield from stage_moves(state, stage, logits, rules)
    yield from attention_moves(state, space)
