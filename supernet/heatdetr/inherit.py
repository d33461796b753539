"""Cuts the weights of a thinned network out of a supernet (spec section 10).

One index set for the residual stream of a stage serves all its blocks, the convolution that
enters it, its SAM, and everything that leaves it. The least important channels are removed first.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .architecture import CONDENSED, LOCAL_OPERATORS, Architecture
from .detector import Detector
from .operators import OPERATORS
from .operators.cutting import Streams, top
from .operators.entries import Entry
from .place import Place, local_name
from .supernet import CANDIDATES, GlobalMixture, Mixture, Supernet

Positions = tuple[tuple[int, ...], ...]
"""For each stage, the supernet positions that are kept, in order."""


@torch.no_grad()
def inherit(supernet: Supernet, architecture: Architecture, positions: Positions) -> Detector:
    """Return a detector of `architecture` with the supernet's weights.

    `positions` gives the supernet position of each local block. Raises
    `CheckpointError` where the architecture is no part of the supernet. Running statistics are
    those of the mixture: recalibrate before measuring any accuracy.
    """
    _check(supernet, architecture, positions)
    source = _flatten(supernet, architecture, positions)
    network = Detector(architecture)
    streams = _streams(source, architecture)
    entries = architecture.entries()
    for place, unit in network.units.items():
        _copy_unit(entries[place], source[place], unit, place, streams)
    if network.many is not None and supernet.many is not None:
        _copy_unit(entries["head"], supernet.many, network.many, "head", streams)
    return network


def kept_channels(
    supernet: Supernet, architecture: Architecture, positions: Positions
) -> list[Tensor]:
    """Return, for each stage, which of the supernet's channels a thinned network keeps."""
    return _streams(_flatten(supernet, architecture, positions), architecture)


def _streams(source: Mapping[str, nn.Module], architecture: Architecture) -> list[Tensor]:
    return [
        top(_stream_scores(source, architecture, stage), width)
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
    entry: Entry, old: nn.Module, new: nn.Module, place: str, streams: Sequence[Tensor]
) -> None:
    """Copy one unit; which streams it joins follows from its place."""
    copy = OPERATORS[entry.op].inherit
    if copy is None:
        assert not list(new.parameters()), f"{place} has weights that nothing copies"
        return
    stage = Place.parse(place).stage
    copy(old, new, Streams(streams[stage - 1], stage, streams))
