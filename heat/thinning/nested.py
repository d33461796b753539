"""The networks that an elastic supernet trains: those on the chains of its devices.

Thinning yields a nested sequence of networks, from the largest of the space down. Only these, of
each device until its target is reached, are ever asked for.
"""

from collections.abc import Iterable

from supernet.counting import count_macs
from supernet.heatdetr.elastic import Member
from supernet.heatdetr.supernet import SearchSpace

from .moves import Logits, State, ThinningRules, removed_mass
from .search import Chain, LatencyMs


def whole_chain(
    space: SearchSpace, logits: Logits, rules: ThinningRules, latency_ms: LatencyMs | None = None
) -> list[State]:
    """Return the states of the greedy chain by importance mass, down to the smallest network.

    Without a latency multiply-adds take its place.
    """
    chain = Chain(
        space,
        logits,
        rules,
        latency_ms or by_macs(space, logits),
        lambda before, after: removed_mass(before, after, logits),
    )
    while chain.extend():
        pass
    return chain.states


def by_macs(space: SearchSpace, logits: Logits) -> LatencyMs:
    """Return the multiply-adds of a state, in millions: a prior where nothing is measured."""
    known: dict[State, float] = {}

    def macs(state: State) -> float:
        if state not in known:
            known[state] = count_macs(state.architecture(space, logits)).total / 1e6
        return known[state]

    return macs


def members_of(states: Iterable[State], space: SearchSpace, logits: Logits) -> list[Member]:
    """Return the networks of some states, each once, the largest first."""
    return by_size(Member(state.architecture(space, logits), state.positions()) for state in states)


def by_size(members: Iterable[Member]) -> list[Member]:
    """Return networks, each once, the one of most multiply-adds first."""
    return sorted(dict.fromkeys(members), key=lambda member: -count_macs(member.architecture).total)
