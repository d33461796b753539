"""A small search space with a synthetic table."""

import numpy as np

from heat.thinning.moves import Logits, State, ThinningRules, prior_logits, removed_mass
from heat.thinning.search import Chain
from supernet.heatdetr.architecture import LOCAL_OPERATORS, Architecture
from supernet.heatdetr.operators.entries import Entry
from supernet.heatdetr.supernet import SearchSpace

SPACE = SearchSpace(
    template=Architecture(widths=(96, 96, 160, 192), blocks=("RR", "RR", "RRRR", "RR")),
    positions=(2, 2, 4, 2),
)
LETTER = {operator: letter for letter, operator in LOCAL_OPERATORS.items()}
COST = {"R": 1.0, "W": 1.6, "S": 1.9}
LOGITS = prior_logits(SPACE)


def latency_ms(state: State, logits: Logits = LOGITS) -> float:
    """A synthetic table: every block and every width costs something."""
    architecture = state.architecture(SPACE, logits)
    blocks = sum(
        COST[letter] * width / 32
        for width, string in zip(architecture.widths, architecture.blocks, strict=True)
        for letter in string
    )
    return 2.0 + blocks + sum(width / 16 for width in architecture.widths)


class Rows:
    """A table with a row for every entry of the toy space, each off by a random share of it."""

    def __init__(self, seed: int = 0, spread: float = 0.5) -> None:
        self.rng = np.random.default_rng(seed)
        self.spread = spread
        self.known: dict[Entry, float] = {}

    def sum_ms(self, state: State, logits: Logits = LOGITS) -> float:
        entries = state.architecture(SPACE, logits).entries().values()
        return sum(self._row_ms(entry) for entry in entries)

    def _row_ms(self, entry: Entry) -> float:
        if entry not in self.known:
            noise = 1 + self.rng.uniform(-self.spread, self.spread)
            self.known[entry] = COST.get(LETTER.get(entry.op, ""), 0.5) * entry.d_out / 32 * noise
        return self.known[entry]


def chain_of(logits: Logits = LOGITS) -> Chain:
    return Chain(
        SPACE,
        logits,
        ThinningRules(stage_rule="all"),
        latency_ms,
        lambda before, after: removed_mass(before, after, logits),
    )
