"""A small search space with a synthetic table."""

from heat.search import Chain
from heat.thinning import Logits, State, ThinningRules, prior_logits, removed_mass
from supernet.architecture import Architecture
from supernet.supernet import SearchSpace

SPACE = SearchSpace(
    template=Architecture(widths=(96, 96, 160, 192), blocks=("RR", "RR", "RRRR", "RR")),
    positions=(2, 2, 4, 2),
)
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


def chain_of(logits: Logits = LOGITS) -> Chain:
    return Chain(
        SPACE,
        logits,
        ThinningRules(stage_rule="all"),
        latency_ms,
        lambda before, after: removed_mass(before, after, logits),
    )
