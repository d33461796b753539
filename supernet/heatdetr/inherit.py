"""Cuts the weights of a thinned network out of a supernet (spec section 10).

One index set for the residual stream of a stage serves all its blocks, the convolution that
enters it, its SAM, and everything that leaves it. The least important channels are removed first;
of an elastic supernet, whose channels are in the order of importance, the last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .architecture import CONDENSED, LOCAL_OPERATORS, Architecture, GlobalBlock
from .detector import Detector
from .operators import OPERATORS
from .operators.cutting import Pick, Streams, first, ranked, top
from .operators.entries import Entry
from .place import Place, local_name
from .supernet import CANDIDATES, IDENTITY, GlobalMixture, Mixture, Supernet

Positions = tuple[tuple[int, ...], ...]
"""For each stage, the supernet positions that are kept, in order."""


@torch.no_grad()
def inherit(supernet: Supernet, architecture: Architecture, positions: Positions) -> Detector:
    """Return a detector of `architecture` with the supernet's weights.

    `positions` gives the supernet position of each local block. Raises
    `CheckpointError` where the architecture is no part of the supernet. Running statistics are
    those of the mixture: recalibrate before measuring any accuracy.
    """
    network = Detector(architecture)
    fill(network, supernet, positions)
    return network


@torch.no_grad()
def fill(network: Detector, supernet: Supernet, positions: Positions) -> None:
    """Copy a supernet's weights into one of its networks; see `inherit`."""
    architecture = network.architecture
    _check(supernet, architecture, positions)
    source = _flatten(supernet, architecture, positions)
    pick = first if supernet.elastic else top
    streams = _streams(source, architecture, pick)
    entries = architecture.entries()
    for place, unit in network.units.items():
        _copy_unit(entries[place], source[place], unit, place, streams, pick)
    if network.many is not None and supernet.many is not None:
        _copy_unit(entries["head"], supernet.many, network.many, "head", streams, pick)


@torch.no_grad()
def order_channels(
    supernet: Supernet, architecture: Architecture, positions: Positions
) -> Supernet:
    """Return an elastic supernet: the same one, its channels in the order of their importance.

    Residual streams are ranked by the network of `architecture`, of full width; heads and inner
    channels by the weights of their own unit. The first channels are the most important.
    """
    _check(supernet, architecture, positions)
    streams = _streams(_flatten(supernet, architecture, positions), architecture, ranked)
    ordered = Supernet(supernet.space, supernet.config)
    ordered.load_state_dict(supernet.state_dict())  # logits, and what has no order
    entries = supernet.architecture.entries()
    for place, old in supernet.units.items():
        new = ordered.units[place]
        for kind, wide, narrow in _alternatives(old, new):
            entry = entries[place]
            if isinstance(old, Mixture):
                entry = replace(entry, op=kind)
            elif isinstance(old, GlobalMixture):
                of_kind = supernet.architecture.with_(global_block=cast(GlobalBlock, kind))
                entry = of_kind.entries()[place]
            _copy_unit(entry, wide, narrow, place, streams, ranked)
    if supernet.many is not None and ordered.many is not None:
        _copy_unit(entries["head"], supernet.many, ordered.many, "head", streams, ranked)
    ordered.elastic = True
    return ordered


def _alternatives(old: nn.Module, new: nn.Module) -> list[tuple[str, nn.Module, nn.Module]]:
    """Return what two units of a place consist of, in pairs: a mixture's operators by name."""
    if isinstance(old, Mixture) and isinstance(new, Mixture):
        return list(zip(CANDIDATES[:IDENTITY], old.operators, new.operators, strict=True))
    if isinstance(old, GlobalMixture) and isinstance(new, GlobalMixture):
        return [(kind, old.blocks[kind], new.blocks[kind]) for kind in old.blocks]
    return [("", old, new)]


def kept_channels(
    supernet: Supernet, architecture: Architecture, positions: Positions
) -> list[Tensor]:
    """Return, for each stage, which of the supernet's channels a thinned network keeps."""
    pick = first if supernet.elastic else top
    return _streams(_flatten(supernet, architecture, positions), architecture, pick)


def _streams(
    source: Mapping[str, nn.Module], architecture: Architecture, pick: Pick
) -> list[Tensor]:
    return [
        pick(_stream_scores(source, architecture, stage), width)
        for stage, width in enumerate(architecture.widths, 1)
    ]


def _check(supernet: Supernet, architecture: Architecture, positions: Positions) -> None:
    space = supernet.space
    fits = (
        all(small <= large for small, large in zip(architecture.widths, space.widths, strict=True))
        and all(
            len(chosen) == len(string) and all(index < count for index in chosen)
            for chosen, string, count in zip(
                positions, architecture.blocks, space.positions, strict=True
            )
        )
        and architecture.with_(widths=space.widths, blocks=space.template.blocks, name="")
        == space.template.with_(
            name="",
            input_size=architecture.input_size,  # weights do not depend on it
            global_block=architecture.global_block
            if space.global_choice or may_replace(architecture, space.template)
            else space.template.global_block,
        )
    )
    if not fits:
        raise CheckpointError(
            f"architecture {architecture.widths} {architecture.blocks} is no part of the supernet "
            f"of widths {space.widths}, positions {space.positions}: run heat thin again"
        )


def may_replace(architecture: Architecture, template: Architecture) -> bool:
    """Return whether an architecture's global block takes the weights of a template's unchanged."""
    return template.global_block == "oa" and architecture.global_block in CONDENSED


def _flatten(
    supernet: Supernet, architecture: Architecture, positions: Positions
) -> dict[str, nn.Module]:
    """Return the supernet's modules under the places of the thinned network."""
    kind = "oa" if architecture.global_block in CONDENSED else architecture.global_block
    source = {
        place: unit.blocks[kind] if isinstance(unit, GlobalMixture) else unit
        for place, unit in supernet.units.items()
    }
    for stage, chosen in enumerate(positions, 1):
        for new, old in enumerate(chosen):
            mixture = cast(Mixture, supernet.units[local_name(stage, old)])
            operator = LOCAL_OPERATORS[architecture.blocks[stage - 1][new]]
            source[local_name(stage, new)] = mixture.operators[CANDIDATES.index(operator)]
    kept = architecture.entries()
    return {place: unit for place, unit in source.items() if place in kept}


def _stream_scores(
    source: Mapping[str, nn.Module], architecture: Architecture, stage: int
) -> Tensor:
    """Return the importance of each channel of a stage's residual stream: the sum of |gamma|."""
    scores: list[Tensor] = []
    entries = architecture.entries()
    for name, unit in source.items():
        if Place.parse(name).stage == stage:
            scores.extend(OPERATORS[entries[name].op].scales(unit))
    return torch.stack(scores).sum(0)


def _copy_unit(
    entry: Entry,
    old: nn.Module,
    new: nn.Module,
    place: str,
    streams: Sequence[Tensor],
    pick: Pick,
) -> None:
    """Copy one unit; which streams it joins follows from its place."""
    copy = OPERATORS[entry.op].inherit
    if copy is None:
        assert not list(new.parameters()), f"{place} has weights that nothing copies"
        return
    stage = Place.parse(place).stage
    copy(old, new, Streams(streams[stage - 1], stage, streams, pick))
