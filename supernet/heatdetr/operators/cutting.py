"""Copies weights of a wide unit into a narrow one: which channels and heads are kept.

Every unit of a stage reads and writes the stage's residual stream, so that one index set of its
channels serves them all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from .convbn import ConvBN, FeedForward

Pick = Callable[[Tensor, int], Tensor]
"""Returns the indices of so many channels, or heads, given the importance of each."""


def top(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the largest scores in ascending order."""
    return ranked(scores, count).sort().values


def ranked(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the largest scores, the largest first."""
    return scores.argsort(descending=True, stable=True)[:count]


def first(scores: Tensor, count: int) -> Tensor:
    """Return the first indices: of weights that were brought into the order of importance."""
    return torch.arange(count)


@dataclass(frozen=True, slots=True)
class Streams:
    """Indices of the channels that are kept, and how those inside of a unit are chosen."""

    own: Tensor
    """Those of the stream that the unit writes to."""
    stage: int
    """The stage that has this stream, from 1."""
    stages: Sequence[Tensor]
    """Those of each stage's stream."""
    pick: Pick = top

    @property
    def before(self) -> Tensor:
        """Those of the stage before."""
        return self.stages[self.stage - 2]

    def with_own(self, own: Tensor) -> "Streams":
        """Return a copy for units that work on another stream."""
        return replace(self, own=own)


class AttentionUnit(Protocol):
    """A block of attention and a feed-forward branch."""

    heads: int
    qkv: ConvBN
    proj: ConvBN
    ffn: FeedForward


def expand(heads: Tensor, size: int) -> Tensor:
    """Return the channel indices of whole heads of `size` channels."""
    return (heads[:, None] * size + torch.arange(size)).flatten()


def copy_bn(old: nn.BatchNorm2d, new: nn.BatchNorm2d, index: Tensor) -> None:
    """Copy some channels of a BatchNorm."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(new, name).copy_(getattr(old, name)[index])


def copy_conv(old: ConvBN, new: ConvBN, rows: Tensor, columns: Tensor) -> None:
    """Copy some outputs (rows) of a convolution, computed from some inputs (columns)."""
    weight = old.conv.weight[rows]
    new.conv.weight.copy_(weight if old.conv.groups > 1 else weight[:, columns])
    copy_bn(old.bn, new.bn, rows)


def copy_linear(old: nn.Conv2d, new: nn.Conv2d, columns: Tensor) -> None:
    """Copy a convolution with bias that keeps all its outputs."""
    assert old.bias is not None and new.bias is not None
    new.weight.copy_(old.weight[:, columns])
    new.bias.copy_(old.bias)


def copy_ffn(old: FeedForward, new: FeedForward, streams: Streams) -> None:
    """Copy a feed-forward branch: hidden channels are ranked by the product of their norms."""
    fan_in = old.fc1.conv.weight.abs().sum((1, 2, 3))
    fan_out = old.fc2.conv.weight.abs().sum((0, 2, 3))
    scores = fan_in * old.fc1.bn.weight.abs() * fan_out
    hidden = streams.pick(scores, new.fc1.bn.num_features)
    copy_conv(old.fc1, new.fc1, hidden, streams.own)
    copy_conv(old.fc2, new.fc2, streams.own, hidden)


def copy_attention(
    old: AttentionUnit,
    new: AttentionUnit,
    streams: Streams,
    *,
    value: int,
    rows: Callable[[Tensor], Tensor],
) -> Tensor:
    """Copy a block; return the heads that are kept.

    Whole heads are removed, by the L1 norm of their columns of `proj`; `value` is their number of
    channels there, `rows` gives the outputs of `qkv` that belong to some heads.
    """
    columns = old.proj.conv.weight.abs().sum((0, 2, 3)).view(old.heads, value).sum(1)
    heads = streams.pick(columns, new.heads)
    copy_conv(old.qkv, new.qkv, rows(heads), streams.own)
    copy_conv(old.proj, new.proj, streams.own, expand(heads, value))
    copy_ffn(old.ffn, new.ffn, streams)
    return heads


def rows_by_part(old: AttentionUnit, head: int) -> Callable[[Tensor], Tensor]:
    """Return which outputs of `qkv` belong to heads where it holds all q, then all k, all v."""
    width = old.heads * head
    return lambda heads: torch.cat([expand(heads, head) + part * width for part in range(3)])


def attention_scales(unit: AttentionUnit) -> list[Tensor]:
    """Return |gamma| of the last BatchNorm of both residual branches."""
    return [unit.proj.bn.weight.abs(), unit.ffn.fc2.bn.weight.abs()]
