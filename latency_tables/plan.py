"""What a table needs: entries in batches, and whole networks to check it with."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from supernet.architecture import CONDENSED, WIDTH_STEP, Architecture, Entry, GlobalBlock

from .measure import MAX_ROUNDS, ROUNDS
from .networks import random_architecture

BATCH = 24
"""Entries whose probes are loaded and interleaved together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checks:
    """How thoroughly a table is measured, calibrated and checked."""

    anchors: int = 10
    """Networks that set the table's factor and overhead."""
    held_out: int = 5
    """Networks that only check them."""
    memory: int = 8
    """Networks, the first of all, whose peak memory is measured; every fourth one only checks."""
    max_rounds: int = MAX_ROUNDS
    """Rounds of a batch, even where some entries are not yet known well enough."""


LAZY = Checks(anchors=4, held_out=2, memory=0, max_rounds=ROUNDS)
"""For a table that thinning fills as it goes."""


def space_entries(template: Architecture, widths: Sequence[int], *, oa: bool) -> list[Entry]:
    """Return every entry a network of at most these widths can have (spec section 8.2).

    With the default widths 192, 192, 256, 384 these are the spec's 764 (728 without `oa`), and
    two more: preprocessing and decoding. A template of original self-attention, or of what takes
    its place, has the latter's too.
    """
    found: set[Entry] = set()
    choices = [range(WIDTH_STEP, limit + 1, WIDTH_STEP) for limit in widths]
    every_operator = ("RWS",) * 4
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


def check_networks(
    template: Architecture, widths: Sequence[int], positions: Sequence[int], checks: Checks
) -> list[Architecture]:
    """Draw the networks that calibrate the table, then those that check it.

    In turn from the whole space, its narrower two thirds and its narrowest third: networks
    of very different size tell a factor from an overhead.
    """
    rng = np.random.default_rng(0)
    networks = []
    for index in range(checks.anchors + checks.held_out):
        share = (3 - index % 3) / 3
        limits = [max(WIDTH_STEP, int(width * share)) for width in widths]
        networks.append(random_architecture(rng, template, limits, positions))
    return networks
