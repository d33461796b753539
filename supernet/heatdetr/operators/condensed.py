"""Cheaper self-attention: ACT, ENACT and average pooling over windows in HeatDETR's global blocks.

Weights are those of `OriginalBlock`, whose place they take, after training too; ENACT adds a
scoring map of D + 1. In training projected keys and values are averaged over windows; the deployed
form projects the averages, which gives the same result with less work.

Shape suffixes: B batch, D channels, N heads, E = 32 channels of a head, T tokens, M windows.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from ...attention import ActAttention, EnactAttention, PoolAttention
from ...attention.act import ROUNDS
from ...attention.enact import WindowAttention, weighted
from ...graph.nodes import Value
from ...graph.writer import GraphWriter
from . import original
from .base import Operator, same_shape
from .cutting import Streams, attention_scales
from .entries import Entry, Macs
from .original import HEAD, OriginalBlock, params_of

CLUSTERS = 0.25
"""ACT's clusters at most, as a share of the tokens."""
WINDOW = 6
"""Tokens of a window of ENACT and pool."""


def bound_of(tokens: int, share: float) -> int:
    """Return how many clusters ACT has at most."""
    return max(1, math.ceil(round(share * tokens, 6)))


class CondensedBlock(OriginalBlock):
    """The common part: maps become tokens, and tokens maps."""

    def _tokens(self, graph: GraphWriter, x: Value) -> Value:
        """Write a map [B, D, H, W] as [B * N, H * W, E]."""
        B, _, H, W = x.shape
        heads = self.heads
        if graph.channels_last:
            x = graph.reshape(graph.transpose(x, 0, 2, 3, 1), B, H * W, heads, HEAD)
            return graph.reshape(graph.transpose(x, 0, 2, 1, 3), B * heads, H * W, HEAD)
        return graph.swap(graph.reshape(x, B * heads, HEAD, H * W))

    def _map(self, graph: GraphWriter, x: Value, shape: tuple[int, ...]) -> Value:
        """Write [B * N, H * W, E] as a map."""
        B, D, H, W = shape
        if graph.channels_last:
            x = graph.transpose(graph.reshape(x, B, self.heads, H * W, HEAD), 0, 2, 1, 3)
            return graph.transpose(graph.reshape(x, B, H, W, D), 0, 3, 1, 2)
        return graph.reshape(graph.swap(x), B, D, H, W)


class ActBlock(CondensedBlock):
    """Queries of equal hash codes share one attention result; clusters are bounded."""

    def __init__(self, d: int, share: float = CLUSTERS) -> None:
        """Build the block; the hash is not learned."""
        super().__init__(d)
        self.share = share
        self.core = ActAttention(HEAD, ROUNDS)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """Attend by clusters, feed forward."""
        q, k, v = self._projected(x_BDHW)
        self.core.most = bound_of(q.shape[2], self.share)
        return self._finish(x_BDHW, self.core.attend(q, k, v))

    def emit(self, graph: GraphWriter, x: Value) -> Value:
        """Write the deployed block."""
        parts = self._parts()
        q, k, v = (self._tokens(graph, graph.conv(x, part)) for part in parts)
        self.core.most = bound_of(q.shape[1], self.share)
        read = self.core.emit_attend(graph, q, k, v)
        return self._emit_finish(graph, x, self._map(graph, read, x.shape))


class WindowedBlock(CondensedBlock):
    """Queries attend to one key and value per window of tokens."""

    core: WindowAttention

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """Attend to windows, feed forward."""
        q, k, v = self._projected(x_BDHW)
        B, N, _, E = q.shape
        both_BTD = torch.cat([k, v], 1).transpose(1, 2).flatten(2)
        windows = torch.stack(
            [
                weighted(both, self.core.weigh(tokens))
                for both, tokens in zip(
                    both_BTD, x_BDHW.flatten(2).transpose(1, 2).float(), strict=True
                )
            ]
        )
        k, v = windows.view(B, -1, 2 * N, E).transpose(1, 2).to(q).chunk(2, 1)
        return self._finish(x_BDHW, self.core.attend(q, k, v))

    def emit(self, graph: GraphWriter, x: Value) -> Value:
        """Write the deployed block."""
        B, D, H, W = x.shape
        to_q, to_k, to_v = self._parts()
        if graph.channels_last:
            tokens = graph.reshape(graph.transpose(x, 0, 2, 3, 1), B, H * W, D)
        else:
            tokens = graph.swap(graph.reshape(x, B, D, H * W))
        held, _ = self.core.emit_condense(graph, tokens, tokens)
        M = held.shape[1]
        if graph.channels_last:
            held = graph.transpose(graph.reshape(held, B, M, 1, D), 0, 3, 1, 2)
        else:
            held = graph.reshape(graph.swap(held), B, D, M, 1)
        q = self._tokens(graph, graph.conv(x, to_q))
        k, v = (self._tokens(graph, graph.conv(held, part)) for part in (to_k, to_v))
        read = self.core.emit_attend(graph, q, k, v)
        return self._emit_finish(graph, x, self._map(graph, read, x.shape))


class EnactBlock(WindowedBlock):
    """Windows weighted by entropy (ENACT)."""

    core: EnactAttention

    def __init__(self, d: int, window: int = WINDOW) -> None:
        super().__init__(d)
        self.core = EnactAttention(d, window)


class PoolBlock(WindowedBlock):
    """Average pooling over windows."""

    def __init__(self, d: int, window: int = WINDOW) -> None:
        super().__init__(d)
        self.core = PoolAttention(window)


def act_macs(d: int, cells: int, share: float = CLUSTERS) -> Macs:
    """Multiply-adds of one block of width d: hashing counts as linear."""
    hashing = cells * d * ROUNDS
    return Macs(12 * d * d * cells + hashing, 2 * bound_of(cells, share) * cells * d)


def window_macs(d: int, cells: int, window: int, *, scored: bool) -> Macs:
    """Multiply-adds of one block of width d; a score is D for each token."""
    windows = cells // min(window, cells)
    linear = 10 * d * d * cells + 2 * d * d * windows
    return Macs(linear + (d * cells if scored else 0), 2 * cells * windows * d)


def enact_params(d: int) -> int:
    """Deployed parameters of one block of width d."""
    return params_of(d) + d + 1


def _enact_macs(entry: Entry) -> Macs:
    return window_macs(entry.d_in, entry.h * entry.w, entry.window, scored=True)


def _pool_macs(entry: Entry) -> Macs:
    return window_macs(entry.d_in, entry.h * entry.w, entry.window, scored=False)


def inherit_scored(old: OriginalBlock, new: EnactBlock, streams: Streams) -> None:
    """Copy a block, and ENACT's scoring map where the wide one has one."""
    original.inherit(old, new, streams)
    if isinstance(old, EnactBlock):
        new.core.score.weight.copy_(old.core.score.weight[:, streams.own])
        new.core.score.bias.copy_(old.core.score.bias)


ACT = Operator(
    build=lambda entry: ActBlock(entry.d_in, entry.clusters),
    macs=lambda entry: act_macs(entry.d_in, entry.h * entry.w, entry.clusters),
    params=lambda entry: params_of(entry.d_in),
    inputs=same_shape,
    outputs=same_shape,
    keeps_map=True,
    hidden=4,
    weights_of="oa",
    parameters=("clusters",),
    inherit=original.inherit,
    scales=attention_scales,
)
POOL = replace(
    ACT,
    build=lambda entry: PoolBlock(entry.d_in, entry.window),
    macs=_pool_macs,
    parameters=("window",),
)
ENACT = replace(
    POOL,
    build=lambda entry: EnactBlock(entry.d_in, entry.window),
    macs=_enact_macs,
    params=lambda entry: enact_params(entry.d_in),
    inherit=inherit_scored,
)
