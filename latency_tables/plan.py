"""Chooses what to time: the entries most informative about whole networks, and check networks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from supernet.heatdetr.architecture import (
    CONDENSED,
    LOCAL_OPERATORS,
    WIDTH_STEP,
    Architecture,
    GlobalBlock,
)
from supernet.heatdetr.operators.entries import Entry

from .families import family, multiply_adds, prior_covariance, prior_mean
from .model import LatencyModel
from .networks import random_architecture
from .samples import Array

BATCH = 24
"""Entries whose probes are loaded and interleaved together."""
FIRST_OF_A_FAMILY = 4
"""Entries of each family that are timed first."""
TARGETS = 40
"""Number of random networks whose predictions are to become certain."""
ENOUGH_SD = 0.003
"""Median relative standard deviation of networks, from their entries, that is enough."""
CONTRADICTION = 3.0
"""Leave-one-out residual, in standard deviations, at which an entry is timed again."""
MOST_SAMPLES = 3
"""Most timings of one entry in one run."""
FIXED_COST_S = 0.03
"""Seconds of writing and loading an entry's probes."""
RUNS = 4 * 4
"""Approximate number of runs of each probe of an entry."""
PROBES = 6.0
"""Milliseconds of one run of all probes of an entry, as a multiple of the entry's own."""
EXPECTED_NOISE = 0.03
"""Relative standard deviation of a timing, before any is known."""
LARGE_MS = 0.1
"""Entries above it show the relative noise of timings on this machine."""
EXPECTED_NOISE_MS = 0.003


@dataclass(frozen=True, kw_only=True, slots=True)
class Checks:
    """How thoroughly a table is measured and checked."""

    networks: int = 8
    """Whole networks that are timed; each is also predicted without its own timings."""
    memory: int = 6
    """The peak memory of this many of them is measured; every fourth is held out to check."""
    budget_s: float = 90.0
    """Most seconds for entries; those not timed by then are modelled from their neighbours."""
    enough_sd: float = ENOUGH_SD
    """Median relative standard deviation of networks, from their entries, that ends it earlier."""


LAZY = Checks(networks=1, memory=0, budget_s=22.0, enough_sd=0.01)
"""For a table that thinning measures itself: the networks it builds are timed too."""


def space_entries(template: Architecture, widths: Sequence[int], *, oa: bool) -> list[Entry]:
    """Return every entry a network of at most these widths can have (spec section 8.2).

    With the default widths 192, 192, 256, 384 these are the spec's 764 (728 without `oa`), and
    two more: preprocessing and decoding. With `oa`, a template of original self-attention, or of
    an operator in its place, also has the entries of those operators.
    """
    found: set[Entry] = set()
    choices = [range(WIDTH_STEP, limit + 1, WIDTH_STEP) for limit in widths]
    every_operator = ("".join(LOCAL_OPERATORS),) * 4
    blocks: tuple[GlobalBlock, ...] = ("cw", "oa") if oa else ("cw",)
    if oa and template.global_block != "cw":
        blocks += CONDENSED
    # Every entry depends on at most two widths, so all pairs are enough.
    for a, b in ((0, 1), (1, 2), (2, 3), (1, 3)):
        for wide_a, wide_b in product(choices[a], choices[b]):
            chosen = [WIDTH_STEP] * 4
            chosen[a], chosen[b] = wide_a, wide_b
            d1, d2, d3, d4 = chosen
            for block in blocks:
                network = template.with_(
                    widths=(d1, d2, d3, d4), blocks=every_operator, global_block=block
                )
                found.update(network.entries().values())
    return sorted(found)


def batches_of(entries: Iterable[Entry]) -> list[tuple[Entry, ...]]:
    """Split entries into batches in which neighbours share their caps."""
    ordered = sorted(set(entries), key=lambda e: (e.stride, e.op, e.d_out, e.d_in, e))
    return [tuple(ordered[start : start + BATCH]) for start in range(0, len(ordered), BATCH)]


def first_entries(entries: Iterable[Entry]) -> list[Entry]:
    """Return some entries of every family, from its smallest to its largest by multiply-adds."""
    by_family: dict[str, list[Entry]] = {}
    for entry in sorted(set(entries), key=lambda e: (multiply_adds(e), e)):
        by_family.setdefault(family(entry), []).append(entry)
    chosen: list[Entry] = []
    for members in by_family.values():
        places = np.linspace(0, len(members) - 1, min(FIRST_OF_A_FAMILY, len(members)))
        chosen.extend(members[round(place)] for place in places)
    return chosen


def next_entries(
    model: LatencyModel,
    candidates: Iterable[Entry],
    targets: Sequence[Architecture],
    timed: dict[Entry, int],
    count: int = BATCH,
) -> list[Entry]:
    """Return the entries whose timing is most informative about the targets per second of timing.

    Entries that contradict all others come first, until they were timed a third time. The others
    are chosen greedily, each with the covariance that remains after those before it.
    """
    allowed = {entry for entry in candidates if timed.get(entry, 0) < MOST_SAMPLES}
    chosen = [entry for entry in contradictions(model) if entry in allowed][: count // 2]
    at = np.array([model.index[entry] for entry in sorted(allowed - set(chosen))], dtype=int)
    shares = target_shares(model, targets)
    covariance = model.entry_covariance()
    times_ms = model.times_ms
    noise = expected_noise(model) ** 2 + (EXPECTED_NOISE_MS / times_ms) ** 2
    cost = FIXED_COST_S + RUNS * PROBES * times_ms / 1e3
    for entry in chosen:
        _condition(covariance, model.index[entry], noise)
    while len(chosen) < count and len(at):
        gain = ((shares @ covariance[:, at]) ** 2).sum(axis=0)
        worth = gain / (covariance[at, at] + noise[at]) / cost[at]
        best = int(np.argmax(worth))
        chosen.append(model.entries[at[best]])
        _condition(covariance, at[best], noise)
        at = np.delete(at, best)
    return chosen


def expected_noise(model: LatencyModel) -> float:
    """Return the relative standard deviation that the next timing will have, as those before it."""
    found = [sample.sd_ms / sample.ms for sample in model.samples if sample.ms > LARGE_MS]
    return float(np.median(found)) if found else EXPECTED_NOISE


def design(entries: Iterable[Entry], targets: Sequence[Architecture], count: int) -> list[Entry]:
    """Return the entries to time on another machine, where all are chosen before the first timing.

    Chosen as in `next_entries`, by the prior alone.
    """
    every = sorted(set(entries))
    index = {entry: at for at, entry in enumerate(every)}
    times = np.exp(prior_mean(every))
    shares = np.zeros((len(targets), len(every)))
    for row, network in zip(shares, targets, strict=True):
        for entry in network.entries().values():
            row[index[entry]] += times[index[entry]]
    shares /= shares.sum(axis=1, keepdims=True)
    covariance = prior_covariance(every)
    noise = np.full(len(every), EXPECTED_NOISE**2)
    chosen = first_entries(every)
    for entry in chosen:
        _condition(covariance, index[entry], noise)
    left = np.array([at for at, entry in enumerate(every) if entry not in chosen], dtype=int)
    while len(chosen) < count and len(left):
        gain = ((shares @ covariance[:, left]) ** 2).sum(axis=0)
        best = int(np.argmax(gain / (covariance[left, left] + noise[left])))
        chosen.append(every[left[best]])
        _condition(covariance, int(left[best]), noise)
        left = np.delete(left, best)
    return chosen


def contradictions(model: LatencyModel) -> list[Entry]:
    """Return the entries with a sample that all other samples contradict, worst first."""
    worst: dict[Entry, float] = {}
    for sample, residual in zip(model.samples, model.residuals, strict=False):
        worst[sample.entry] = max(worst.get(sample.entry, 0.0), abs(float(residual)))
    found = sorted(worst.items(), key=lambda item: -item[1])
    return [entry for entry, residual in found if residual > CONTRADICTION]


def entries_sd(model: LatencyModel, targets: Sequence[Architecture]) -> float:
    """Return the median relative standard deviation of networks due to their entries.

    The factor common to all entries of a device is left out: whole networks determine it.
    """
    shares = target_shares(model, targets)
    variance = np.einsum("ij,jk,ik->i", shares, model.entry_covariance(), shares)
    return float(np.median(np.sqrt(np.maximum(variance, 0.0))))


def target_shares(model: LatencyModel, targets: Sequence[Architecture]) -> Array:
    """Return each entry's share of the time of networks, [targets, entries]."""
    times = np.array([model.counts(net.entries()) for net in targets]) * model.times_ms
    return np.asarray(times / times.sum(axis=1, keepdims=True))


def _condition(covariance: Array, at: int, noise: Array) -> None:
    """Condition a covariance, in place, on a timing of one entry."""
    column = covariance[:, at].copy()
    covariance -= np.outer(column, column) / (column[at] + noise[at])


def check_networks(
    template: Architecture,
    widths: Sequence[int],
    positions: Sequence[int],
    count: int,
    *,
    seed: int = 0,
) -> list[Architecture]:
    """Draw networks to check a table with, or whose predictions are to become certain.

    In turn from the whole space, its narrower two thirds and its narrowest third: networks of very
    different size tell a factor from an overhead.
    """
    rng = np.random.default_rng(seed)
    networks = []
    for index in range(count):
        share = (3 - index % 3) / 3
        limits = [max(WIDTH_STEP, int(width * share)) for width in widths]
        networks.append(random_architecture(rng, template, limits, positions))
    return networks
