"""States of the search and the moves between them (paper Algorithm 1, spec section 9).

Pure functions of frozen values: what a network costs and what a move loses come from outside.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Self

from supernet.heatdetr.architecture import (
    CONDENSED,
    LOCAL_OPERATORS,
    WIDTH_STEP,
    Architecture,
    GlobalBlock,
)
from supernet.heatdetr.operators import OPERATORS
from supernet.heatdetr.place import local_name
from supernet.heatdetr.supernet import CANDIDATES, IDENTITY, SearchSpace

Place = tuple[int, int]
"""(stage from 1, position from 0)."""

Logits = Mapping[Place, tuple[float, ...]]
"""Selection logits r of every position, in the order of `CANDIDATES`."""

MoveKind = str
"""The paper's: layer, identity, SWMSA, WMSA and width reduction (LR, IR, SR, WMR, WR). AR is ours:
original attention is reduced to clusters or windows. Only the last fit to the target uses RR
(RepCNN reduction) and what gives back: a layer, an operator, width (LA, OA, WA). The reductions of
operators are theirs (`Operator.reduction`)."""

StageRule = Literal["mean", "sum", "all"]
"""Stage importance over its live positions; `all` offers every stage's moves."""

SMALLEST = 0
"""The candidate of a position that cannot be reduced further: the first of the operator table."""

LETTERS = {op: letter for letter, op in LOCAL_OPERATORS.items()}
REDUCTION = {op: OPERATORS[op].reduction for op in LOCAL_OPERATORS.values()}


@dataclass(frozen=True, slots=True)
class State:
    """What is left of the supernet."""

    widths: tuple[int, int, int, int]
    allowed: Mapping[Place, tuple[int, ...]]
    """Candidates still allowed at each live position, as indices into `CANDIDATES`."""
    global_block: GlobalBlock | None = None
    """What took the place of the template's global block, if anything did."""

    @classmethod
    def full(cls, space: SearchSpace) -> Self:
        """Return the state in which everything lives."""
        every = tuple(index for index in range(len(CANDIDATES)) if index != IDENTITY)
        places = [
            (stage, position)
            for stage, count in enumerate(space.positions, 1)
            for position in range(count)
        ]
        return cls(space.widths, dict.fromkeys(places, every))

    def __hash__(self) -> int:
        """Hash the values; a mapping has no hash of its own."""
        return hash((self.widths, tuple(sorted(self.allowed.items())), self.global_block))

    def live(self, stage: int) -> list[Place]:
        """Return the live positions of a stage in order."""
        return sorted(place for place in self.allowed if place[0] == stage)

    def operator(self, place: Place, logits: Logits) -> int:
        """Return the operator of a position: the largest logit among the allowed."""
        return max(self.allowed[place], key=lambda candidate: logits[place][candidate])

    def without(self, place: Place) -> "State":
        """Delete a position."""
        return replace(self, allowed={key: a for key, a in self.allowed.items() if key != place})

    def forbidding(self, place: Place, candidate: int) -> "State":
        """Drop a candidate from a position; a position left empty is deleted."""
        left = tuple(index for index in self.allowed[place] if index != candidate)
        if not left:
            return self.without(place)
        return replace(self, allowed={**self.allowed, place: left})

    def allowing(self, place: Place, candidates: tuple[int, ...]) -> "State":
        """Set the candidates of a position, live or not."""
        return replace(self, allowed={**self.allowed, place: tuple(sorted(candidates))})

    def narrower(self, stage: int, by: int = WIDTH_STEP) -> "State":
        """Take one head's width off a stage; a negative `by` gives it back."""
        d1, d2, d3, d4 = (
            width - by * (number == stage) for number, width in enumerate(self.widths, 1)
        )
        return replace(self, widths=(d1, d2, d3, d4))

    def architecture(self, space: SearchSpace, logits: Logits) -> Architecture:
        """Return the network of this state."""
        b1, b2, b3, b4 = (
            "".join(LETTERS[CANDIDATES[self.operator(place, logits)]] for place in self.live(stage))
            for stage in (1, 2, 3, 4)
        )
        return space.template.with_(
            name="thinned",
            widths=self.widths,
            blocks=(b1, b2, b3, b4),
            global_block=self.global_block or space.template.global_block,
        )

    def positions(self) -> tuple[tuple[int, ...], ...]:
        """Return the live position numbers of each stage."""
        return tuple(tuple(place[1] for place in self.live(stage)) for stage in (1, 2, 3, 4))


@dataclass(frozen=True, slots=True)
class Move:
    """One way to thin a state."""

    kind: MoveKind
    stage: int
    position: int | None
    after: State
    steps: int = 1
    """How many times the kind of move was made at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ThinningRules:
    """Floors and the stage rule."""

    min_blocks: int = 1
    """Local blocks that every stage keeps."""
    min_width: int = WIDTH_STEP
    """Width that every stage keeps."""
    stage_rule: StageRule = "mean"
    """mean, the paper's sum, or all."""


def importance(state: State, place: Place, logits: Logits) -> float:
    """Return M = (1 - p_I) / p_I over the allowed candidates and I."""
    r = logits[place]
    allowed = [r[candidate] for candidate in state.allowed[place]]
    peak = max(allowed)
    log_sum = peak + math.log(sum(math.exp(value - peak) for value in allowed))
    return math.exp(min(50.0, log_sum - r[IDENTITY]))


def importances(space: SearchSpace, logits: Logits) -> dict[str, float]:
    """Return M of every position of the whole supernet, by name."""
    full = State.full(space)
    return {local_name(*place): importance(full, place, logits) for place in full.allowed}


def stage_importance(state: State, stage: int, logits: Logits, rule: StageRule) -> float:
    """Return the sum or mean of M over a stage's live positions; 0 for an empty stage."""
    values = [importance(state, place, logits) for place in state.live(stage)]
    total = sum(values)
    return total if rule == "sum" or not values else total / len(values)


def stage_moves(state: State, stage: int, logits: Logits, rules: ThinningRules) -> Iterator[Move]:
    """Yield IR, SR, WMR and WR of one stage, where the floors allow them."""
    live = state.live(stage)
    if len(live) > rules.min_blocks:
        weakest = min(live, key=lambda place: importance(state, place, logits))
        yield Move("IR", stage, weakest[1], state.without(weakest))
    for candidate in reversed(range(SMALLEST + 1, IDENTITY)):
        kind = REDUCTION[CANDIDATES[candidate]]
        for place in live:
            if state.operator(place, logits) == candidate:
                after = state.forbidding(place, candidate)
                if len(after.live(stage)) < rules.min_blocks:
                    # The only candidate of a position that must stay: a study leaves such.
                    after = state.allowing(place, (SMALLEST,))
                yield Move(kind, stage, place[1], after)
                break
    if state.widths[stage - 1] - WIDTH_STEP >= rules.min_width:
        yield Move("WR", stage, None, state.narrower(stage))


def layer_move(state: State, logits: Logits, rules: ThinningRules) -> Move | None:
    """Return LR: delete the weakest position of the whole network."""
    deletable = [
        place for place in sorted(state.allowed) if len(state.live(place[0])) > rules.min_blocks
    ]
    if not deletable:
        return None
    weakest = min(deletable, key=lambda place: importance(state, place, logits))
    return Move("LR", weakest[0], weakest[1], state.without(weakest))


def attention_moves(state: State, space: SearchSpace) -> Iterator[Move]:
    """Yield AR: original attention to each of the forms that do less, if it is original."""
    if (state.global_block or space.template.global_block) == "oa":
        for kind in CONDENSED:
            yield Move("AR", 4, None, replace(state, global_block=kind))


def repeated(move: Move, logits: Logits, rules: ThinningRules) -> Iterator[Move]:
    """Yield a move made twice, three times and so on at once, as far as the floors allow.

    LR goes on in the whole network, IR and WR in their stage; SR and WMR go on at their position
    until its smallest operator is left.
    """
    while (after := _again(move, logits, rules)) is not None:
        move = replace(move, after=after, steps=move.steps + 1)
        yield move


def _again(move: Move, logits: Logits, rules: ThinningRules) -> State | None:
    """Return the state after the same kind of move is made once more; None at the floor."""
    state = move.after
    if move.kind == "LR":
        layer = layer_move(state, logits, rules)
        return layer.after if layer is not None else None
    if move.kind in ("IR", "WR"):
        moves = stage_moves(state, move.stage, logits, rules)
        return next((again.after for again in moves if again.kind == move.kind), None)
    if move.kind in ("SR", "WMR") and move.position is not None:
        place = (move.stage, move.position)
        if place in state.allowed and state.operator(place, logits) != SMALLEST:
            return state.forbidding(place, state.operator(place, logits))
    return None


def every_move(
    state: State, space: SearchSpace, logits: Logits, rules: ThinningRules
) -> Iterator[Move]:
    """Yield every single change of a state within the space, forwards and backwards."""
    yield from attention_moves(state, space)
    if state.global_block is not None:
        yield Move("OA", 4, None, replace(state, global_block=None))
    full = State.full(space)
    for place, candidates in full.allowed.items():
        stage, position = place
        if place not in state.allowed:
            yield Move("LA", stage, position, state.allowing(place, candidates))
            continue
        if len(state.live(stage)) > rules.min_blocks:
            yield Move("LR", stage, position, state.without(place))
        allowed, operator = state.allowed[place], state.operator(place, logits)
        if len(allowed) > 1:
            kind = REDUCTION[CANDIDATES[operator]]
            yield Move(kind, stage, position, state.forbidding(place, operator))
        for candidate in candidates:
            if candidate not in allowed and logits[place][candidate] > logits[place][operator]:
                yield Move("OA", stage, position, state.allowing(place, (*allowed, candidate)))
    for stage, (width, widest) in enumerate(zip(state.widths, space.widths, strict=True), 1):
        if width - WIDTH_STEP >= rules.min_width:
            yield Move("WR", stage, None, state.narrower(stage))
        if width + WIDTH_STEP <= widest:
            yield Move("WA", stage, None, state.narrower(stage, -WIDTH_STEP))


def removed_mass(before: State, after: State, logits: Logits) -> float:
    """Return the share of importance mass a move removes, in points of 100 (proxy c).

    Deleted positions and dropped candidates lose their M; a narrower stage loses its share of
    channels of all its positions' M.
    """

    def mass(state: State) -> float:
        return sum(
            importance(state, place, logits) * state.widths[place[0] - 1] for place in state.allowed
        )

    return 100.0 * (1.0 - mass(after) / mass(before))


def prior_logits(space: SearchSpace) -> dict[Place, tuple[float, ...]]:
    """Return logits without any training: the preset pattern of Table 3, medium, gets 1.

    Stage 1 prefers RepCNN; later stages alternate RepCNN and SWMSA in their first half, WMSA and
    SWMSA in the second half of S3.
    """
    logits = {}
    for stage, count in enumerate(space.positions, 1):
        for position in range(count):
            if stage == 1:
                name = "repcnn"
            elif stage == 3 and position >= count // 2:
                name = "wmsa" if position % 2 == 0 else "swmsa"
            else:
                name = "repcnn" if position % 2 == 0 else "swmsa"
            values = [0.0] * len(CANDIDATES)
            values[CANDIDATES.index(name)] = 1.0
            logits[(stage, position)] = tuple(values)
    return logits
