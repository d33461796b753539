"""The chain of moves on tables with bumps: it is never stuck, and ends at the smallest network."""

import hashlib
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from heat.spaces import search_space
from heat.stages.explain import _close
from heat.thinning.frontier import frontier
from heat.thinning.greedy import thin_step
from heat.thinning.ledger import LedgerRow
from heat.thinning.limits import Cost
from heat.thinning.moves import (
    Logits,
    Place,
    StageRule,
    State,
    ThinningRules,
    prior_logits,
    removed_mass,
)
from heat.thinning.search import Chain
from latency_tables.columns import entry_of
from supernet.heatdetr.supernet import CANDIDATES, SearchSpace
from tests.toy_space import LOGITS, SPACE, Rows, chain_of, latency_ms

RULES: tuple[StageRule, ...] = ("mean", "sum", "all")
NOISY = Path(__file__).resolve().parents[2] / "shared" / "cases" / "noisy-table"
FACTOR, OVERHEAD_MS = 0.8952761571102243, 0.011854656276935192
"""Calibration of the noisy table."""

RECORDED = {
    ("prior", "mean"): (
        "WR1 WR1 WR2 WR2 SR2.1 LR2.1 WR3 WR3 WR3 WR3 SR3.1 LR3.1 SR3.3 LR3.3 WMR3.2 LR3.2 WR4 WR4 "
        "WR4 WR4 WR4 SR4.1 LR4.1 LR1.0",
        "0d65ab82c93877a7",
    ),
    ("prior", "sum"): (
        "WR1 WR1 WR2 WR2 SR2.1 LR2.1 WR4 WR4 WR4 WR4 WR4 SR4.1 LR4.1 WR3 WR3 WR3 WR3 SR3.1 LR3.1 "
        "SR3.3 LR3.3 WMR3.2 LR3.2 LR1.0",
        "8c6687138c9d0a8d",
    ),
    ("prior", "all"): (
        "WR2 WR2 WR4 WR4 WR4 WR4 WR4 WR3 WR3 WR3 WR3 WR1 WR1 SR2.1 LR2.1 SR3.1 LR3.1 SR3.3 LR3.3 "
        "SR4.1 LR4.1 WMR3.2 LR3.2 LR1.0",
        "7e2f93b281b543af",
    ),
    ("ordered", "mean"): (
        "LR3.2 LR1.0 WR1 WR1 LR3.3 LR2.0 LR4.0 SR1.1 WMR1.1 WR2 WR2 LR3.1 SR2.1 WMR2.1 WR4 WR4 WR4 "
        "WR4 WR4 SR4.1 WMR4.1 WR3 WR3 WR3 WR3 SR3.0 WMR3.0",
        "40b5bd79626c6ce6",
    ),
    ("ordered", "sum"): (
        "LR3.2 LR1.0 WR1 WR1 LR3.3 LR2.0 LR4.0 SR1.1 WMR1.1 WR2 WR2 LR3.1 SR2.1 WMR2.1 WR4 WR4 WR4 "
        "WR4 WR4 SR4.1 WMR4.1 WR3 WR3 WR3 WR3 SR3.0 WMR3.0",
        "ceeafa17d68f980d",
    ),
    ("ordered", "all"): (
        "LR3.2 LR1.0 WR1 WR1 WR2 WR2 WR4 WR4 WR4 WR4 WR4 LR3.3 LR2.0 LR4.0 LR3.1 SR1.1 WMR1.1 WR3 "
        "WR3 WR3 WR3 SR4.1 WMR4.1 SR2.1 WMR2.1 SR3.0 WMR3.0",
        "6d0a3f39eb2607c4",
    ),
}
"""Moves on the bump-free toy table, and a digest of the ledger, as HEAT 0.1.0 made them."""


def ordered_logits(seed: int = 0) -> Logits:
    """Logits that prefer the dearer operator everywhere, so that every reduction shortens."""
    rng = random.Random(seed)
    logits: dict[Place, tuple[float, ...]] = {}
    for place in State.full(SPACE).allowed:
        repcnn, wmsa, swmsa = sorted(rng.gauss(0, 1) for _ in range(3))
        logits[place] = (repcnn, wmsa, swmsa, rng.gauss(0, 1))
    return logits


def random_logits(seed: int) -> Logits:
    rng = random.Random(seed)
    return {
        place: tuple(rng.gauss(0, 1) for _ in CANDIDATES) for place in State.full(SPACE).allowed
    }


def make_chain(
    space: SearchSpace, logits: Logits, rule: StageRule, ms: Callable[[State], float]
) -> Chain:
    """Return a chain by importance mass; its latencies are remembered."""
    known: dict[State, float] = {}

    def remembered(state: State) -> float:
        if state not in known:
            known[state] = ms(state)
        return known[state]

    return Chain(
        space,
        logits,
        ThinningRules(stage_rule=rule),
        remembered,
        lambda before, after: removed_mass(before, after, logits),
    )


def to_the_end(chain: Chain) -> Chain:
    while chain.extend():
        pass
    return chain


def is_smallest(chain: Chain) -> bool:
    """Whether a chain ends at minimal widths, one position a stage, and nothing to reduce."""
    last = chain.states[-1]
    blocks = last.architecture(chain.space, chain.logits).blocks
    return last.widths == (32, 32, 32, 32) and blocks == ("R", "R", "R", "R")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["prior", "ordered"])
def test_without_bumps_the_chain_is_as_it_was(name: str, rule: StageRule) -> None:
    logits = LOGITS if name == "prior" else ordered_logits()
    chain = to_the_end(make_chain(SPACE, logits, rule, lambda state: latency_ms(state, logits)))
    moves, lines = [], []
    for trials in chain.trials:
        for trial in trials:
            move, network = trial.move, trial.move.after.architecture(SPACE, logits)
            lines.append(
                f"{trial.step} {move.kind} {move.stage} {move.position} {network.widths} "
                f"{network.blocks} {trial.importance:.6g} {trial.ap_drop:.6g} {trial.ms:.6g} "
                f"{trial.ratio:.6g} {trial.chosen} {trial.reason}"
            )
            if trial.chosen:
                place = "" if move.position is None else f".{move.position}"
                moves.append(f"{move.kind}{move.stage}{place}")
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    assert (" ".join(moves), digest) == RECORDED[(name, rule)]
    assert is_smallest(chain)


def test_the_chain_never_gets_stuck_on_a_noisy_table() -> None:
    """200 tables of rows that are off by up to 50 %: the smallest network is always reached."""
    forced = leaps = 0
    for seed in range(200):
        rows, logits = Rows(seed), LOGITS if seed % 2 else random_logits(seed)

        def ms(state: State, rows: Rows = rows, logits: Logits = logits) -> float:
            return rows.sum_ms(state, logits)

        chain = to_the_end(make_chain(SPACE, logits, RULES[seed % 3], ms))
        assert is_smallest(chain), (seed, chain.states[-1])
        assert len(set(chain.states)) == len(chain.states)
        floor_fps = 1000.0 / ms(chain.states[-1])
        for share in (0.3, 0.6, 0.9, 1.0):
            index = chain.reach(lambda state, fps=share * floor_fps: 1000.0 / ms(state) >= fps)  # type: ignore[misc]
            assert index is not None, (seed, share)
        chosen = [trial for trials in chain.trials for trial in trials if trial.chosen]
        leaps += sum(trial.move.steps > 1 for trial in chosen)
        forced += sum("no move shortens" in trial.reason for trial in chosen)
    assert leaps > 100 and forced > 0  # the noise is enough to need both


def bumped(state: State) -> float:
    """The toy table with one row too high: the last stage at the width one step below its full."""
    return latency_ms(state) + (40.0 if state.widths[3] == 160 else 0.0)


def test_a_bump_is_looked_through() -> None:
    """Narrowing S4 by one head seems to cost time: two heads are offered instead."""
    state = State.full(SPACE)
    trials = thin_step(
        0,
        state,
        SPACE,
        LOGITS,
        ThinningRules(stage_rule="all"),
        bumped,
        lambda before, after: removed_mass(before, after, LOGITS),
    )
    narrower = [t for t in trials if t.move.kind == "WR" and t.move.stage == 4]
    assert [(t.move.steps, t.move.after.widths[3]) for t in narrower] == [(2, 128)]
    assert "2 steps at once" in narrower[0].reason
    others = [t for t in trials if t not in narrower]
    assert all(trial.move.steps == 1 for trial in others)


def test_where_nothing_shortens_the_chain_goes_on_and_says_so() -> None:
    chain = make_chain(SPACE, LOGITS, "mean", lambda state: 10.0 - 0.01 * len(state.allowed))
    to_the_end(chain)
    assert is_smallest(chain)
    last = chain.chosen(len(chain.states) - 1)
    assert last is not None and "no move shortens the predicted latency" in last.reason
    flat = to_the_end(make_chain(SPACE, LOGITS, "sum", lambda state: 10.0))
    assert is_smallest(flat)
    for trials in flat.trials:  # all are equally fast: the one that loses least is taken
        assert min(trials, key=lambda trial: trial.ap_drop).chosen


def test_the_frontier_leaves_out_what_is_no_faster() -> None:
    chain = to_the_end(make_chain(SPACE, LOGITS, "all", lambda state: Rows(3).sum_ms(state)))

    class Prices:
        def cost(self, state: State) -> Cost:
            return Cost(1000.0 / chain.latency_ms(state), 1.0, math.nan)

    rows = frontier(chain, Prices())  # type: ignore[arg-type]
    speeds = [row.fps for row in rows]
    assert speeds == sorted(set(speeds)) and rows[0].move == "start"
    best = max(1000.0 / chain.latency_ms(state) for state in chain.states)
    assert speeds[-1] == pytest.approx(best, abs=1e-3)
    chain.jump(chain.states[-1])
    assert [row.move for row in frontier(chain, Prices())] == ["start", "study"]  # type: ignore[arg-type]


def test_a_forced_step_has_no_price_to_explain() -> None:
    """Its ratio is infinite in the ledger: what it lost for each FPS gained is not a number."""
    forced = LedgerRow(4, "WR", 2, ms=1.0, fps=1000.0, ap_drop=0.5, ratio=math.inf, chosen=True)
    assert _close([forced, forced]) == []
    assert len(_close([replace(forced, ratio=0.5), forced])) == 1


def test_original_attention_is_reduced_before_the_end() -> None:
    space = SearchSpace(template=SPACE.template.with_(global_block="oa"), positions=SPACE.positions)
    chain = to_the_end(make_chain(space, LOGITS, "mean", lambda state: 10.0))
    assert is_smallest(chain) and chain.states[-1].global_block is not None


def test_a_chain_that_a_study_moved_ends_at_the_smallest_network_too() -> None:
    """A study leaves one operator a position, which may be a dear one."""
    chain = chain_of()
    chain.extend()
    swmsa = CANDIDATES.index("swmsa")
    found = State((64, 64, 64, 64), {(stage, 0): (swmsa,) for stage in (1, 2, 3, 4)})
    chain.jump(found)
    assert chain.states == [State.full(SPACE), found] and not chain.at_floor
    assert chain.chosen(0) is None and chain.chosen(1) is None and chain.ledger(1) == []
    to_the_end(chain)
    assert is_smallest(chain) and chain.chosen(2) is not None


def test_the_noisy_table_no_longer_hides_what_is_within_reach() -> None:
    """A real table with rows from two states of the machine, summed as they are."""
    if not NOISY.is_dir():
        pytest.skip("the case noisy-table is not beside this checkout")
    frame = pd.read_csv(next(NOISY.glob("*.csv")), comment="#")
    rows = {entry_of(row): float(row["ms"]) for row in frame.to_dict("records")}
    space = search_space("large", input_size=(448, 448), num_classes=80)
    logits = prior_logits(space)

    def ms(state: State) -> float:
        entries = state.architecture(space, logits).entries().values()
        return float(FACTOR * sum(rows[entry] for entry in entries) + OVERHEAD_MS * len(entries))

    for rule in RULES:
        chain = to_the_end(make_chain(space, logits, rule, ms))
        assert is_smallest(chain)
        assert 1000.0 / ms(chain.states[-1]) == pytest.approx(77.9, abs=0.1)
        index = chain.reach(lambda state: 1000.0 / ms(state) >= 24.0)
        assert index is not None and index < len(chain.states) - 1
        reached = chain.states[index]
        assert 24.0 <= 1000.0 / ms(reached) < 48.0
