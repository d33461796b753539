"""Cheap proxies for the AP that a move costs, and the check that admits one (spec section 10).

A proxy is believed only where it ranks moves as true AP does: on 20 random moves, each measured
both ways, Spearman's rank correlation must reach 0.7.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from supernet.errors import UserError
from supernet.heatdetr.supernet import SearchSpace
from supernet.progress import Progress

from .evaluation import Evaluations
from .moves import Logits, State, ThinningRules, every_move, removed_mass

ApDropBy = Literal["auto", "mass", "features", "loss", "ap"]
"""What a move costs: chosen by the check, or importance mass (c), feature distance (b), detection
loss (a), average precision (d)."""

Drop = Callable[[State, State], float]

ADMITTED = 0.7
"""Spearman's rho at which a proxy is admitted."""
MOVES = 20
"""Random moves that a proxy is checked on."""
MEANING: Mapping[str, str] = {
    "mass": "share of importance mass, percent",
    "features": "distance of features, percent",
    "loss": "rise of the detection loss, percent",
    "ap": "AP on images that the supernet was not trained on, points",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """How well a proxy ranks moves."""

    proxy: str
    spearman: float
    """NaN where true AP does not differ between the moves."""
    moves: int

    @property
    def admitted(self) -> bool:
        """Whether the proxy may replace AP."""
        return self.spearman >= ADMITTED


@dataclass(frozen=True, slots=True)
class Evaluator:
    """What a search scores moves by."""

    name: str
    drop: Drop
    verdicts: tuple[Verdict, ...] = ()

    @property
    def meaning(self) -> str:
        """Name and unit for people."""
        return MEANING[self.name]


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Return Spearman's rank correlation; NaN where one side is constant."""
    if len(set(a)) < 2 or len(set(b)) < 2:
        return math.nan
    ranked = pd.DataFrame({"a": a, "b": b}).rank()
    return float(ranked["a"].corr(ranked["b"]))


def random_moves(
    space: SearchSpace, logits: Logits, rules: ThinningRules, count: int, seed: int = 0
) -> list[tuple[State, State]]:
    """Draw a walk of random thinning moves from the full supernet, restarted at the floor."""
    rng = np.random.default_rng(seed)
    walk: list[tuple[State, State]] = []
    state = State.full(space)
    while len(walk) < count:
        thinner = [
            move.after
            for move in every_move(state, space, logits, rules)
            if move.kind in ("LR", "SR", "WMR", "RR", "WR")
        ]
        if not thinner:
            state = State.full(space)
            continue
        after = thinner[int(rng.integers(len(thinner)))]
        walk.append((state, after))
        state = after
    return walk


def choose(
    wanted: ApDropBy,
    evaluations: Evaluations | None,
    space: SearchSpace,
    logits: Logits,
    rules: ThinningRules,
) -> Evaluator:
    """Return what moves are scored by; the result of the check is printed.

    Without a trained supernet and data only the mass can be read. `auto` takes the loss where it is
    admitted, then the cheaper proxies, and AP itself where none is; where the supernet's own AP is
    next to nothing, none can be judged, and it takes the loss.
    """

    def mass(before: State, after: State) -> float:
        return removed_mass(before, after, logits)

    if evaluations is None:
        if wanted not in ("auto", "mass"):
            raise UserError(
                f"--ap-drop {wanted} needs a trained supernet and --data: heat supernet first"
            )
        return Evaluator("mass", mass)
    drops: dict[str, Drop] = {
        "loss": evaluations.loss_rise,
        "features": evaluations.distance,
        "mass": mass,
        "ap": evaluations.ap_drop,
    }
    if wanted != "auto":
        return Evaluator(wanted, drops[wanted])
    if not evaluations.ap_is_informative:
        print(
            f"the supernet's own AP is {evaluations.ap(State.full(space)):.2f} points on "
            f"{evaluations.images} images, too little to judge proxies by: the loss scores moves. "
            "Train the supernet longer",
            file=sys.stderr,
        )
        return Evaluator("loss", drops["loss"])
    verdicts = judge(drops, random_moves(space, logits, rules, MOVES))
    for verdict in verdicts:
        _say(verdict)
    for verdict in verdicts:
        if verdict.admitted:
            return Evaluator(verdict.proxy, drops[verdict.proxy], tuple(verdicts))
    return Evaluator("ap", drops["ap"], tuple(verdicts))


def judge(drops: Mapping[str, Drop], moves: Sequence[tuple[State, State]]) -> list[Verdict]:
    """Correlate every proxy with the AP lost over the same moves."""
    proxies = [name for name in drops if name != "ap"]
    found: dict[str, list[float]] = {name: [] for name in drops}
    with Progress("proxies", len(moves)) as bar:
        for before, after in moves:
            for name, drop in drops.items():
                found[name].append(drop(before, after))
            bar.advance()
    return [Verdict(name, spearman(found[name], found["ap"]), len(moves)) for name in proxies]


def _say(verdict: Verdict) -> None:
    word = "admitted" if verdict.admitted else "not admitted"
    print(
        f"proxy {verdict.proxy}: Spearman {verdict.spearman:.2f} with the AP lost on "
        f"{verdict.moves} random moves: {word}",
        file=sys.stderr,
    )
