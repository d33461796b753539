"""The joints of SAM, SCM and TCM: everything between global blocks after the backbone.

SAM is the Semantic-Augmented Module (paper Eq. 3), SCM the Scale-Combined Module (Eqs. 4, 5),
TCM the Task-Coupled Module (Eq. 6).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...graph.nodes import Value
from ...graph.writer import GraphWriter
from . import channelwise, condensed, original
from .base import Operator, Shape, no_macs, no_params
from .channelwise import ChannelBlock
from .condensed import ActBlock, EnactBlock, PoolBlock
from .convbn import ConvBN, FeedForward, Gelu, conv_macs, conv_params, half
from .cutting import Streams, copy_conv, copy_ffn
from .entries import Entry, Macs
from .original import OriginalBlock
from .transitions import avgpool

Inherit = Callable[[Any, Any, Streams], None]
"""See `Operator.inherit`."""


def upsample_to(x_BDHW: Tensor, like: Tensor) -> Tensor:
    """Repeat each cell 2x2 and crop to the size of `like`."""
    up = F.interpolate(x_BDHW, scale_factor=2.0, mode="nearest")
    return up[:, :, : like.shape[2], : like.shape[3]]


class Fuse(nn.Module):
    """SAM's joint: `up(coarse) + ConvBN3x3(fine)`."""

    def __init__(self, d_fine: int, d: int) -> None:
        super().__init__()
        self.align = ConvBN(d_fine, d, 3)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Return the fused map at the fine size."""
        aligned: Tensor = self.align(fine)
        return aligned + upsample_to(coarse, aligned)

    def emit(self, graph: GraphWriter, fine: Value, coarse: Value) -> Value:
        """Write Conv, Resize, Add."""
        aligned = graph.conv(fine, self.align)
        return graph.add(aligned, graph.upsample_to(coarse, aligned))


class Lateral(nn.Module):
    """1x1 projection to SCM's width, after a pool where the map is twice too fine."""

    def __init__(self, d_in: int, d_out: int, pool: bool) -> None:
        super().__init__()
        self.pool = pool
        self.conv = ConvBN(d_in, d_out)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """Pool if needed and project."""
        return self.conv(avgpool(x_BDHW) if self.pool else x_BDHW)  # type: ignore[no-any-return]

    def emit(self, graph: GraphWriter, x: Value) -> Value:
        """Write the pool and the convolution."""
        return graph.conv(graph.avgpool(x) if self.pool else x, self.conv)


class PoolFFN(nn.Module):
    """SCM's step: `i + FFN(i) + other`, with `i` pooled first where needed (Eq. 5)."""

    def __init__(self, d: int, pool: bool) -> None:
        super().__init__()
        self.pool = pool
        self.ffn = FeedForward(d)

    def forward(self, x_BDHW: Tensor, other: Tensor) -> Tensor:
        """Return the sum, at the size of `other`."""
        x = avgpool(x_BDHW) if self.pool else x_BDHW
        return x + self.ffn(x) + other  # type: ignore[no-any-return]

    def emit(self, graph: GraphWriter, x: Value, other: Value) -> Value:
        """Write the pool, the FFN and both additions."""
        x = graph.avgpool(x) if self.pool else x
        return graph.add(graph.add(x, self.ffn.emit(graph, x)), other)


class UpAdd(nn.Module):
    """SCM's last joint: `fine + up(coarse)`."""

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Return the sum at the fine size."""
        return fine + upsample_to(coarse, fine)

    def emit(self, graph: GraphWriter, fine: Value, coarse: Value) -> Value:
        """Write Resize, Add."""
        return graph.add(fine, graph.upsample_to(coarse, fine))


class TaskSplit(nn.Module):
    """TCM's first half: widen to 2C, T1's global blocks, split into classes and regression."""

    def __init__(self, d: int, blocks: int, block: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.widen = ConvBN(d, 2 * d)
        self.act = Gelu()
        self.blocks = nn.Sequential(*(block(2 * d) for _ in range(blocks)))

    def forward(self, x_BDHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return (t_cls, t_reg1)."""
        u: Tensor = self.blocks(self.act(self.widen(x_BDHW)))
        t_cls, t_reg = u.chunk(2, dim=1)
        return t_cls, t_reg

    def emit(self, graph: GraphWriter, x: Value) -> tuple[Value, Value]:
        """Write the widening, the blocks and the split."""
        d = x.shape[1]
        u = self.act.emit(graph, graph.conv(x, self.widen))
        for block in self.blocks:
            assert isinstance(block, ChannelBlock | OriginalBlock)
            u = block.emit(graph, u)
        t_cls, t_reg = graph.split(u, 1, (d, d))
        return t_cls, t_reg


def _coarse(entry: Entry, channels: int) -> Shape:
    return (channels, half(entry.h), half(entry.w))


def _fine(entry: Entry, channels: int) -> Shape:
    return (channels, entry.h, entry.w)


def _inherit_fuse(old: Fuse, new: Fuse, streams: Streams) -> None:
    copy_conv(old.align, new.align, streams.own, streams.before)


def _inherit_ffn(old: PoolFFN, new: PoolFFN, streams: Streams) -> None:
    copy_ffn(old.ffn, new.ffn, streams)


def _ffn_scales(unit: PoolFFN) -> list[Tensor]:
    return [unit.ffn.fc2.bn.weight.abs()]


def _lateral(stage: int, *, pool: bool) -> Operator:
    """Return the projection of a stage's map, which may be pooled first."""
    side = _coarse if pool else _fine

    def macs(entry: Entry) -> Macs:
        _, height, width = side(entry, entry.d_out)
        return conv_macs(entry.d_in, entry.d_out, 1, height * width)

    def inherit(old: Lateral, new: Lateral, streams: Streams) -> None:
        copy_conv(old.conv, new.conv, streams.own, streams.stages[stage - 1])

    return Operator(
        build=lambda entry: Lateral(entry.d_in, entry.d_out, pool=pool),
        macs=macs,
        params=lambda entry: conv_params(entry.d_in, entry.d_out, 1),
        inputs=lambda entry: (_fine(entry, entry.d_in),),
        outputs=lambda entry: (side(entry, entry.d_out),),
        inherit=inherit,
    )


def _ffn(*, pool: bool) -> Operator:
    """Return the feed-forward layer of a sum; of its maps the first may be pooled."""
    side = _coarse if pool else _fine

    def macs(entry: Entry) -> Macs:
        _, height, width = side(entry, entry.d_out)
        return Macs(8 * entry.d_in**2 * height * width)

    return Operator(
        build=lambda entry: PoolFFN(entry.d_in, pool=pool),
        macs=macs,
        params=lambda entry: FeedForward.params(entry.d_in),
        inputs=lambda entry: (_fine(entry, entry.d_in), side(entry, entry.d_in)),
        outputs=lambda entry: (side(entry, entry.d_out),),
        hidden=4,
        inherit=_inherit_ffn,
        scales=_ffn_scales,
    )


FUSE = Operator(
    build=lambda entry: Fuse(entry.d_in, entry.d_out),
    macs=lambda entry: conv_macs(entry.d_in, entry.d_out, 3, entry.h * entry.w),
    params=lambda entry: conv_params(entry.d_in, entry.d_out, 3),
    inputs=lambda entry: (_fine(entry, entry.d_in), _coarse(entry, entry.d_out)),
    outputs=lambda entry: (_fine(entry, entry.d_out),),
    inherit=_inherit_fuse,
)
LAT1 = _lateral(2, pool=True)
LAT1_FINE = _lateral(2, pool=False)
LAT2 = _lateral(3, pool=False)
FFN1 = _ffn(pool=False)
FFN2 = _ffn(pool=True)
UP4 = Operator(
    build=lambda entry: UpAdd(),
    macs=no_macs,
    params=no_params,
    inputs=lambda entry: (_fine(entry, entry.d_in), _coarse(entry, entry.d_in)),
    outputs=lambda entry: (_fine(entry, entry.d_out),),
)


def _t1(
    block: Callable[[int, Entry], nn.Module],
    block_macs: Callable[[int, Entry], Macs],
    block_params: Callable[[int], int],
    block_inherit: Inherit,
    parameters: tuple[str, ...] = ("blocks",),
) -> Operator:
    """Return TCM's first half of blocks, which are made and counted by their width."""

    def macs(entry: Entry) -> Macs:
        total = conv_macs(entry.d_in, 2 * entry.d_in, 1, entry.h * entry.w)
        for _ in range(entry.blocks):
            total += block_macs(2 * entry.d_in, entry)
        return total

    def params(entry: Entry) -> int:
        widen = conv_params(entry.d_in, 2 * entry.d_in, 1)
        return widen + entry.blocks * block_params(2 * entry.d_in)

    def inherit(old: TaskSplit, new: TaskSplit, streams: Streams) -> None:
        both = torch.cat([streams.own, streams.own + old.widen.bn.num_features // 2])
        copy_conv(old.widen, new.widen, both, streams.own)
        for wide, narrow in zip(old.blocks, new.blocks, strict=True):
            block_inherit(wide, narrow, streams.with_own(both))

    return Operator(
        build=lambda entry: TaskSplit(entry.d_in, entry.blocks, lambda d: block(d, entry)),
        macs=macs,
        params=params,
        inputs=lambda entry: (_fine(entry, entry.d_in),),
        outputs=lambda entry: (_fine(entry, entry.d_out), _fine(entry, entry.d_out)),
        parameters=parameters,
        hidden=8,
        inherit=inherit,
    )


T1_CW = _t1(
    lambda d, _: ChannelBlock(d),
    lambda d, entry: channelwise.macs_of(d, entry.h * entry.w),
    channelwise.params_of,
    channelwise.inherit,
)
T1_OA = _t1(
    lambda d, _: OriginalBlock(d),
    lambda d, entry: original.macs_of(d, entry.h * entry.w),
    original.params_of,
    original.inherit,
)
T1_ACT = _t1(
    lambda d, entry: ActBlock(d, entry.clusters),
    lambda d, entry: condensed.act_macs(d, entry.h * entry.w, entry.clusters),
    original.params_of,
    original.inherit,
    ("clusters", "blocks"),
)
T1_ENACT = _t1(
    lambda d, entry: EnactBlock(d, entry.window),
    lambda d, entry: condensed.window_macs(d, entry.h * entry.w, entry.window, scored=True),
    condensed.enact_params,
    condensed.inherit_scored,
    ("window", "blocks"),
)
T1_POOL = _t1(
    lambda d, entry: PoolBlock(d, entry.window),
    lambda d, entry: condensed.window_macs(d, entry.h * entry.w, entry.window, scored=False),
    original.params_of,
    original.inherit,
    ("window", "blocks"),
)
