"""Every move of a small state, by hand."""

from collections import Counter
from dataclasses import replace

import pytest

from heat.thinning.moves import (
    Move,
    Place,
    State,
    ThinningRules,
    every_move,
    importance,
    importances,
    layer_move,
    prior_logits,
    removed_mass,
    repeated,
    stage_importance,
    stage_moves,
)
from supernet.heatdetr.supernet import CANDIDATES, SearchSpace
from tests.toy_space import SPACE

R, W, S, _ = range(4)
RULES = ThinningRules()
FULL = State.full(SPACE)
"""Candidates in the order of the operator table: RepCNN, WMSA, SWMSA, identity."""
DEAREST = dict.fromkeys(FULL.allowed, (0.0, 1.0, 2.0, -1.0))
"""Logits by which every position is SWMSA, then WMSA, then RepCNN."""


def test_the_candidates_are_in_this_order() -> None:
    assert CANDIDATES == ("repcnn", "wmsa", "swmsa", "identity")


def kinds(moves: list[Move]) -> Counter[str]:
    return Counter(move.kind for move in moves)


def test_every_move_of_the_whole_supernet() -> None:
    """Ten positions of SWMSA in four stages: nothing can be given back."""
    moves = list(every_move(FULL, SPACE, DEAREST, RULES))
    assert kinds(moves) == {"LR": 10, "SR": 10, "WR": 4}
    reduced = next(m for m in moves if m.kind == "SR" and (m.stage, m.position) == (3, 2))
    assert reduced.after.allowed[(3, 2)] == (R, W)
    narrowed = next(m for m in moves if m.kind == "WR" and m.stage == 3)
    assert narrowed.after.widths == (96, 96, 128, 192) and narrowed.steps == 1


def test_every_move_of_a_thinned_state() -> None:
    state = FULL.without((1, 0)).forbidding((2, 0), S).forbidding((2, 1), S).forbidding((2, 1), W)
    state = replace(state, widths=(96, 96, 160, 32))
    assert state.allowed[(2, 0)] == (R, W) and state.allowed[(2, 1)] == (R,)
    found = [(m.kind, m.stage, m.position) for m in every_move(state, SPACE, DEAREST, RULES)]
    assert ("LA", 1, 0) in found and ("LR", 1, 1) not in found, "its stage's last position"
    assert ("WMR", 2, 0) in found, "two candidates are enough to drop one"
    assert ("RR", 2, 1) not in found, "its last candidate"
    assert found.count(("OA", 2, 0)) == 1 and found.count(("OA", 2, 1)) == 2
    assert ("WR", 4, None) not in found and ("WA", 4, None) in found
    assert ("WA", 3, None) not in found, "as wide as the space"
    given = [m for m in every_move(state, SPACE, DEAREST, RULES) if m.kind == "OA" and m.stage == 2]
    assert [m.after.allowed[(2, m.position or 0)] for m in given] == [(R, W, S), (R, W), (R, S)]
    back = next(m for m in every_move(state, SPACE, DEAREST, RULES) if m.kind == "WA")
    assert back.after.widths == (96, 96, 160, 64)


def test_an_operator_of_a_smaller_logit_is_not_given_back() -> None:
    """It would not be chosen."""
    logits = {**DEAREST, (2, 0): (2.0, 1.0, 2.0, -1.0)}
    state = FULL.forbidding((2, 0), W).forbidding((2, 0), S)
    assert ("OA", 2) not in [(m.kind, m.stage) for m in every_move(state, SPACE, logits, RULES)]


def test_floors_hold_at_their_value() -> None:
    rules = ThinningRules(min_blocks=2, min_width=160)
    moves = list(every_move(FULL, SPACE, DEAREST, rules))
    assert {(m.stage, m.kind) for m in moves if m.kind in ("LR", "WR")} == {(3, "LR"), (4, "WR")}
    assert [m.kind for m in stage_moves(FULL, 4, DEAREST, rules)] == ["SR", "WR"]
    layer = layer_move(FULL, DEAREST, rules)
    assert layer is not None and layer.stage == 3
    assert layer_move(FULL, DEAREST, ThinningRules(min_blocks=4)) is None


def test_the_moves_of_a_stage() -> None:
    """The weakest position goes, one of each operator is reduced, and a head's width is taken."""
    logits: dict[Place, tuple[float, ...]] = dict(DEAREST)
    logits[(3, 1)] = (0.0, 3.0, 0.0, -1.0)
    logits[(3, 2)] = (0.0, 0.1, 0.2, 4.0)
    found = [(m.kind, m.position) for m in stage_moves(FULL, 3, logits, RULES)]
    assert found == [("IR", 2), ("SR", 0), ("WMR", 1), ("WR", None)]
    lone = State((64, 64, 64, 64), {(stage, 0): (S,) for stage in (1, 2, 3, 4)})
    (reduced, narrowed) = stage_moves(lone, 1, DEAREST, RULES)
    assert reduced.kind == "SR" and reduced.after.allowed[(1, 0)] == (R,), "the last one stays"
    assert narrowed.after.widths == (32, 64, 64, 64)
    assert list(stage_moves(narrowed.after, 1, DEAREST, RULES))[-1].kind == "SR"


def test_the_positions_are_those_of_each_stage() -> None:
    assert FULL.positions() == tuple(tuple(range(n)) for n in SPACE.positions)
    assert FULL.without((1, 0)).positions()[0] == tuple(range(1, SPACE.positions[0]))
    assert FULL.without((3, 1)).positions()[2] == (0, *range(2, SPACE.positions[2]))


def test_moves_that_are_made_again() -> None:
    narrower = Move("WR", 4, None, FULL.narrower(4))
    widths = [(m.steps, m.after.widths[3]) for m in repeated(narrower, DEAREST, RULES)]
    assert widths == [(2, 128), (3, 96), (4, 64), (5, 32)]
    reduced = Move("SR", 3, 1, FULL.forbidding((3, 1), S))
    again = list(repeated(reduced, DEAREST, RULES))
    assert [(m.steps, m.after.allowed[(3, 1)]) for m in again] == [(2, (R,))]
    layers = list(repeated(Move("LR", 1, 0, FULL.without((1, 0))), DEAREST, RULES))
    assert len(layers) == 5 and [m.steps for m in layers] == [2, 3, 4, 5, 6]
    assert len(layers[-1].after.allowed) == 4
    inner = list(repeated(Move("IR", 3, 0, FULL.without((3, 0))), DEAREST, RULES))
    assert [len(m.after.live(3)) for m in inner] == [2, 1]
    gone = Move("SR", 1, 0, FULL.without((1, 0)))
    assert list(repeated(gone, DEAREST, RULES)) == []
    assert list(repeated(Move("AR", 4, None, FULL), DEAREST, RULES)) == []


def test_importance_and_what_a_move_removes_by_hand() -> None:
    """M of a position is the sum of exp(r - r of identity) over what is allowed."""
    zero = dict.fromkeys(FULL.allowed, (0.0,) * 4)
    assert importances(SPACE, zero)["s3_2"] == pytest.approx(3.0)
    certain = {**zero, (1, 0): (0.0, 0.0, 100.0, 0.0)}
    assert importance(FULL, (1, 0), certain) == pytest.approx(5.184705528587072e21), "e^50 at most"
    assert stage_importance(State(FULL.widths, {}), 1, zero, "mean") == 0
    whole = 3 * (96 * 2 + 96 * 2 + 160 * 4 + 192 * 2)
    for after, lost in (
        (FULL.without((1, 0)), 3 * 96),
        (FULL.forbidding((3, 2), W), 160),
        (FULL.narrower(4), 3 * 2 * 32),
    ):
        assert removed_mass(FULL, after, zero) == pytest.approx(100 * lost / whole)


def test_the_prior_is_the_pattern_of_table_3() -> None:
    """RepCNN in stage 1, then in turn with SWMSA; WMSA in the second half of stage 3."""
    space = SearchSpace(template=SPACE.template, positions=(3, 4, 7, 5))
    logits = prior_logits(space)
    blocks = State.full(space).architecture(space, logits).blocks
    assert blocks == ("RRR", "RSRS", "RSRSWSW", "RSRSR")
    assert set(map(tuple, map(sorted, logits.values()))) == {(0.0, 0.0, 0.0, 1.0)}
