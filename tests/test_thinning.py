"""Properties of the thinning search on a synthetic table."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from heat.thinning.greedy import Trial, candidate_moves, thin_step
from heat.thinning.ledger import LEDGER, read_ledger, write_ledger
from heat.thinning.moves import (
    Logits,
    State,
    ThinningRules,
    every_move,
    importance,
    prior_logits,
    removed_mass,
    stage_importance,
)
from supernet.counting import count_macs
from supernet.errors import UserError
from supernet.heatdetr.supernet import CANDIDATES
from tests.toy_space import LOGITS, SPACE, chain_of, latency_ms


def random_logits(seed: int) -> Logits:
    rng = random.Random(seed)
    return {
        place: tuple(rng.gauss(0, 1) for _ in CANDIDATES) for place in State.full(SPACE).allowed
    }


def run(
    logits: Logits, target_fps: float, rules: ThinningRules | None = None
) -> tuple[State, list[Trial], bool]:
    rules = rules or ThinningRules()
    state, log = State.full(SPACE), []
    while 1000 / latency_ms(state, logits) < target_fps:
        trials = thin_step(
            len(log),
            state,
            SPACE,
            logits,
            rules,
            lambda s: latency_ms(s, logits),
            lambda a, b: removed_mass(a, b, logits),
        )
        if not trials:
            return state, log, False
        chosen = next(trial for trial in trials if trial.chosen)
        log.append(chosen)
        state = chosen.move.after
    return state, log, True


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rule", ["mean", "sum", "all"])
def test_fps_rises_strictly_and_every_state_is_a_network(seed: int, rule: str) -> None:
    logits = random_logits(seed)
    _, log, met = run(logits, 60.0, ThinningRules(stage_rule=rule))  # type: ignore[arg-type]
    assert met and log
    fps = [trial.fps for trial in log]
    assert fps == sorted(fps) and len(set(fps)) == len(fps)
    for trial in log:
        architecture = trial.move.after.architecture(SPACE, logits)
        assert count_macs(architecture).total > 0
        assert all(len(string) >= 1 for string in architecture.blocks)
        assert min(architecture.widths) >= 32


def test_same_input_gives_the_same_log() -> None:
    assert run(random_logits(1), 60.0) == run(random_logits(1), 60.0)


def test_a_lower_target_is_a_prefix() -> None:
    _, long, _ = run(random_logits(2), 70.0)
    _, short, _ = run(random_logits(2), 40.0)
    assert 0 < len(short) < len(long)
    assert long[: len(short)] == short


def test_target_already_met_changes_nothing() -> None:
    state, log, met = run(random_logits(0), 1.0)
    assert met and log == [] and state == State.full(SPACE)


def test_unreachable_target_ends_at_the_floor() -> None:
    state, _, met = run(random_logits(0), 1e9)
    assert not met
    assert state.widths == (32, 32, 32, 32)
    assert [len(state.live(stage)) for stage in (1, 2, 3, 4)] == [1, 1, 1, 1]
    assert set(state.architecture(SPACE, random_logits(0)).blocks) == {"R"}


def test_floors_are_kept() -> None:
    rules = ThinningRules(min_blocks=2, min_width=64)
    state, _, _ = run(random_logits(0), 1e9, rules)
    assert min(state.widths) == 64
    assert all(len(state.live(stage)) >= 2 for stage in (1, 2, 3, 4))


def test_importance_by_hand() -> None:
    state = State.full(SPACE)
    zero = {place: (0.0,) * 4 for place in state.allowed}
    assert importance(state, (1, 0), zero) == pytest.approx(3.0)
    assert stage_importance(state, 3, zero, "sum") == pytest.approx(12.0)
    assert stage_importance(state, 3, zero, "mean") == pytest.approx(3.0)
    assert importance(state.forbidding((1, 0), 2), (1, 0), zero) == pytest.approx(2.0)


def test_moves_are_the_papers() -> None:
    logits = {place: (0.0, 1.0, 2.0, -1.0) for place in State.full(SPACE).allowed}
    logits[(1, 0)] = (0.0, 3.0, 0.0, -1.0)
    logits[(4, 1)] = (0.0, 0.1, 0.2, 4.0)
    state = State.full(SPACE)
    moves = candidate_moves(state, SPACE, logits, ThinningRules(), lambda move: True)
    kinds = [(move.kind, move.stage, move.position) for move in moves]
    # S4 is the least important stage; its weakest position is the network's weakest too, so IR
    # equals LR and is dropped; no position of S4 has WMSA as its operator.
    assert kinds == [("LR", 4, 1), ("SR", 4, 0), ("WR", 4, None)]
    every = candidate_moves(
        state, SPACE, logits, ThinningRules(stage_rule="all"), lambda move: True
    )
    assert ("WMR", 1, 0) in [(move.kind, move.stage, move.position) for move in every]


def test_original_attention_may_be_reduced() -> None:
    """Only where the template has it, once, to each of the forms that do less."""
    space = replace(SPACE, template=SPACE.template.with_(global_block="oa"))
    logits = random_logits(0)
    state = State.full(space)
    moves = [m for m in candidate_moves(state, space, logits, ThinningRules(), lambda move: True)]
    reduced = [m.after.architecture(space, logits).global_block for m in moves if m.kind == "AR"]
    assert reduced == ["act", "enact", "pool"]
    after = next(m.after for m in moves if m.kind == "AR").narrower(1)
    assert after.architecture(space, logits).global_block == "act"
    again = candidate_moves(after, space, logits, ThinningRules(), lambda move: True)
    assert "AR" not in [m.kind for m in again]
    back = [m for m in every_move(after, space, logits, ThinningRules()) if m.kind == "OA"]
    assert [m.after.global_block for m in back if m.position is None] == [None]
    assert len({state, replace(state, global_block="act")}) == 2


def test_a_position_without_candidates_is_deleted() -> None:
    state = State.full(SPACE)
    for candidate in (0, 1, 2):
        state = state.forbidding((3, 1), candidate)
    assert (3, 1) not in state.allowed
    assert state.positions()[2] == (0, 2, 3)


def test_prior_follows_the_medium_preset() -> None:
    state = State.full(SPACE)
    blocks = state.architecture(SPACE, prior_logits(SPACE)).blocks
    assert blocks == ("RR", "RS", "RSWS", "RS")


def test_a_damaged_ledger_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "thinning.csv"
    write_ledger(path, chain_of().ledger(0), SPACE, LOGITS)
    assert read_ledger(path) == []
    header, row = ",".join(LEDGER), ["1", "LR", "3"] + ["0"] * (len(LEDGER) - 3)
    path.write_text(f"{header}\n{','.join(row)}\n")
    (read,) = read_ledger(path)
    assert (read.move, read.stage, read.chosen) == ("LR", 3, False)
    for text in (f"{header}\n{','.join([*row[:9], 'many', *row[10:]])}\n", "a,b\n1,2\n"):
        path.write_text(text)
        with pytest.raises(UserError, match="is no thinning ledger: run heat thin again"):
            read_ledger(path)
