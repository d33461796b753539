"""Cuts the weights of a thinned network out of a supernet (spec section 10).

One index set for the residual stream of a stage serves all its blocks, the convolution that
enters it, its SAM, and everything that leaves it. The channels that matter least go first.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .architecture import CONDENSED, LOCAL_OPERATORS, Architecture
from .detector import Detector
from .errors import CheckpointError
from .operators.aggregation import Fuse, Lateral, PoolFFN, TaskSplit
from .operators.channelwise import HEAD as CHANNEL_HEAD
from .operators.channelwise import ChannelBlock
from .operators.condensed import EnactBlock
from .operators.convbn import ConvBN, FeedForward
from .operators.head import Head
from .operators.original import OriginalBlock
from .operators.repcnn import RepCNN, RepCNNUnit
from .operators.transitions import Down, Stem
from .operators.window import HEAD as WINDOW_HEAD
from .operators.window import VALUE, WindowBlock
from .supernet import CANDIDATES, GlobalMixture, Mixture, Supernet

Positions = tuple[tuple[int, ...], ...]
"""For each stage, the supernet positions that live on, in order."""


@torch.no_grad()
def inherit(supernet: Supernet, architecture: Architecture, positions: Positions) -> Detector:
    """Return a detector of `architecture` with the supernet's weights.

    `positions` says which supernet position each local block comes from. Raises
    `CheckpointError` where the architecture is no part of the supernet. Running statistics are
    those of the mixture: recalibrate before reading any accuracy.
    """
    _check(supernet, architecture, positions)
    source = _flatten(supernet, architecture, positions)
    network = Detector(architecture)
    streams = _streams(source, architecture)
    for place, unit in network.units.items():
        _copy_unit(place, source[place], unit, streams)
    if network.many is not None and supernet.many is not None:
        _copy_unit("head", supernet.many, network.many, streams)
    return network


def kept_channels(
    supernet: Supernet, architecture: Architecture, positions: Positions
) -> list[Tensor]:
    """Return, for each stage, which of the supernet's channels a thinned network keeps."""
    return _streams(_flatten(supernet, architecture, positions), architecture)


def _streams(source: Mapping[str, nn.Module], architecture: Architecture) -> list[Tensor]:
    return [
        _top(_stream_scores(source, stage), width)
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
    """Whether an architecture's global block takes the weights of a template's as they are."""
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
            mixture = cast(Mixture, supernet.units[f"s{stage}_{old}"])
            operator = LOCAL_OPERATORS[architecture.blocks[stage - 1][new]]
            source[f"s{stage}_{new}"] = mixture.operators[CANDIDATES.index(operator)]
    kept = {
        f"s{stage}_{new}" for stage, chosen in enumerate(positions, 1) for new in range(len(chosen))
    }
    return {
        place: unit
        for place, unit in source.items()
        if not isinstance(unit, Mixture)
        and (not place[3:].isdigit() or place in kept or place[0] != "s")
    }


def _residual_scales(unit: nn.Module) -> Iterator[Tensor]:
    """Yield |gamma| of the last BN of each residual branch, and of RepCNN's three."""
    if isinstance(unit, RepCNNUnit) and isinstance(unit.block, RepCNN):
        for bn in (unit.block.conv3.bn, unit.block.conv1.bn, unit.block.identity):
            yield bn.weight.abs()
    elif isinstance(unit, WindowBlock | OriginalBlock | ChannelBlock):
        yield unit.proj.bn.weight.abs()
        yield unit.ffn.fc2.bn.weight.abs()
        if isinstance(unit, ChannelBlock):
            yield unit.lpi.conv2.bn.weight.abs()
    elif isinstance(unit, PoolFFN):
        yield unit.ffn.fc2.bn.weight.abs()


def _stream_scores(source: Mapping[str, nn.Module], stage: int) -> Tensor:
    scores: list[Tensor] = []
    for place, unit in source.items():
        own = place.startswith((f"s{stage}_", f"sam{stage}_"))
        if own or (stage == 4 and place.startswith(("scm_", "tcm_t2"))):
            scores.extend(_residual_scales(unit))
    return torch.stack(scores).sum(0)


def _top(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the best scores in ascending order."""
    best = scores.argsort(descending=True, stable=True)[:count]
    return best.sort().values


def _copy_unit(place: str, old: nn.Module, new: nn.Module, streams: Sequence[Tensor]) -> None:
    """Copy one unit; which streams it joins follows from its place."""
    own = streams[_stage_of(place) - 1]
    match old, new:
        case RepCNNUnit(block=RepCNN() as a), RepCNNUnit(block=RepCNN() as b):
            _copy_conv(a.conv3, b.conv3, own, own)
            _copy_conv(a.conv1, b.conv1, own, own)
            _copy_bn(a.identity, b.identity, own)
        case (
            (WindowBlock(), WindowBlock())
            | (ChannelBlock(), ChannelBlock())
            | (
                OriginalBlock(),
                OriginalBlock(),
            )
        ):
            _copy_attention(old, new, own)
        case Stem(), Stem():
            inner1 = _top(old.conv1.bn.weight.abs(), new.conv1.bn.num_features)
            inner2 = _top(old.conv2.bn.weight.abs(), new.conv2.bn.num_features)
            _copy_conv(old.conv1, new.conv1, inner1, torch.arange(3))
            _copy_conv(old.conv2, new.conv2, inner2, inner1)
            _copy_conv(old.conv3, new.conv3, own, inner2)
        case Down(), Down():
            _copy_conv(old.conv, new.conv, own, streams[_stage_of(place) - 2])
        case Fuse(), Fuse():
            _copy_conv(old.align, new.align, own, streams[_stage_of(place) - 2])
        case Lateral(), Lateral():
            source = streams[1] if place == "scm_lat1" else streams[2]
            _copy_conv(old.conv, new.conv, own, source)
        case PoolFFN(), PoolFFN():
            _copy_ffn(old.ffn, new.ffn, own)
        case TaskSplit(), TaskSplit():
            both = torch.cat([own, own + old.widen.bn.num_features // 2])
            _copy_conv(old.widen, new.widen, both, own)
            for wide, narrow in zip(old.blocks, new.blocks, strict=True):
                _copy_attention(wide, narrow, both)
        case Head(), Head():
            for last, thin in ((old.cls, new.cls), (old.box, new.box), (old.obj, new.obj)):
                assert last.bias is not None and thin.bias is not None
                thin.weight.copy_(last.weight[:, own])
                thin.bias.copy_(last.bias)
        case _:
            assert not list(new.parameters()), f"{place} has weights that nothing copies"


def _stage_of(place: str) -> int:
    """Return the stage whose residual stream a place writes to."""
    if place == "stem":
        return 1
    if place.startswith("down"):
        return int(place[-1])
    if place.startswith("sam"):
        return int(place[3])
    return int(place[1]) if place[0] == "s" and place[1].isdigit() else 4


def _copy_bn(old: nn.BatchNorm2d, new: nn.BatchNorm2d, index: Tensor) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(new, name).copy_(getattr(old, name)[index])


def _copy_conv(old: ConvBN, new: ConvBN, rows: Tensor, columns: Tensor) -> None:
    weight = old.conv.weight[rows]
    new.conv.weight.copy_(weight if old.conv.groups > 1 else weight[:, columns])
    _copy_bn(old.bn, new.bn, rows)


def _copy_ffn(old: FeedForward, new: FeedForward, stream: Tensor) -> None:
    fan_in = old.fc1.conv.weight.abs().sum((1, 2, 3))
    fan_out = old.fc2.conv.weight.abs().sum((0, 2, 3))
    hidden = _top(fan_in * old.fc1.bn.weight.abs() * fan_out, new.fc1.bn.num_features)
    _copy_conv(old.fc1, new.fc1, hidden, stream)
    _copy_conv(old.fc2, new.fc2, stream, hidden)


def _copy_attention(old: nn.Module, new: nn.Module, stream: Tensor) -> None:
    """Copy a window or global block: whole heads leave, by the L1 norm of their proj columns."""
    assert isinstance(old, WindowBlock | ChannelBlock | OriginalBlock)
    assert isinstance(new, WindowBlock | ChannelBlock | OriginalBlock)
    columns = old.proj.conv.weight.abs().sum((0, 2, 3)).view(old.heads, VALUE).sum(1)
    heads = _top(columns, new.heads)
    values = _expand(heads, VALUE)
    if isinstance(old, WindowBlock) and isinstance(new, WindowBlock):
        rows = _expand(heads, WINDOW_HEAD)
        new.bias.copy_(old.bias[:, heads])
    else:
        width = old.heads * CHANNEL_HEAD
        rows = torch.cat([_expand(heads, CHANNEL_HEAD) + part * width for part in range(3)])
    _copy_conv(old.qkv, new.qkv, rows, stream)
    _copy_conv(old.proj, new.proj, stream, values)
    _copy_ffn(old.ffn, new.ffn, stream)
    if isinstance(old, ChannelBlock) and isinstance(new, ChannelBlock):
        new.temp.copy_(old.temp[heads])
        _copy_conv(old.lpi.conv1, new.lpi.conv1, stream, stream)
        _copy_conv(old.lpi.conv2, new.lpi.conv2, stream, stream)
    if isinstance(old, EnactBlock) and isinstance(new, EnactBlock):
        new.core.score.weight.copy_(old.core.score.weight[:, stream])
        new.core.score.bias.copy_(old.core.score.bias)
    if isinstance(old, OriginalBlock) and isinstance(new, OriginalBlock) and old.score is not None:
        assert new.score is not None and old.score.bias is not None
        assert new.score.bias is not None
        new.score.weight.copy_(old.score.weight[:, stream])
        new.score.bias.copy_(old.score.bias)


def _expand(heads: Tensor, size: int) -> Tensor:
    """Return the channel indices of whole heads."""
    return (heads[:, None] * size + torch.arange(size)).flatten()
