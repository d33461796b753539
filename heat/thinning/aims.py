"""The networks that a table must be certain of: those on the way of thinning, and random ones."""

import numpy as np

from latency_tables.plan import TARGETS, check_networks
from latency_tables.profile import Targets
from latency_tables.table import LatencyTable
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.supernet import SearchSpace

from .limits import Pricer, refitting
from .moves import Logits, ThinningRules
from .nested import whole_chain

ON_THE_CHAIN = 25
"""Networks of the chain that are aimed at, evenly over it."""


def aims(space: SearchSpace, logits: Logits) -> Targets:
    """Return what chooses the target networks of a table, given what it knows so far.

    The chain is that of importance mass: cheap, and near to what any other evaluator follows.
    """

    def networks(table: LatencyTable) -> list[Architecture]:
        random = check_networks(
            space.template, space.widths, space.positions, TARGETS - ON_THE_CHAIN, seed=7
        )
        return chain_networks(table, space, logits) + random

    return networks


def chain_networks(table: LatencyTable, space: SearchSpace, logits: Logits) -> list[Architecture]:
    """Return networks of the greedy chain by a table's predictions, from the full one down."""
    prices = Pricer(table, space, logits, refitting(table))
    states = whole_chain(space, logits, ThinningRules(stage_rule="all"), prices.table_ms)
    last = len(states) - 1
    places = np.linspace(0, last, min(ON_THE_CHAIN, last + 1)).round().astype(int)
    return [states[place].architecture(space, logits) for place in places]
