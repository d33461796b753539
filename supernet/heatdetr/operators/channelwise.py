"""Channel-wise global attention (XCiT's cross-covariance attention) with Linear-BN.

Shape suffixes: B batch, D channels, N heads, E = 32 channels of a head, T tokens.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...graph.folding import split_conv
from ...graph.nodes import Value
from ...graph.writer import GraphWriter
from .base import Operator, same_shape
from .convbn import ConvBN, FeedForward, Gelu, conv_params
from .cutting import Streams, attention_scales, copy_attention, copy_conv, rows_by_part
from .entries import Macs
from .heads import heads_of, map_of

HEAD = 32
EPS = 1e-6
"""Floor of the product of the two L2 norms."""


class LocalInteraction(nn.Module):
    """LPI: depthwise 3x3, GELU, depthwise 3x3; the only place where tokens meet neighbours."""

    def __init__(self, d: int) -> None:
        """Make the branch; it starts at zero."""
        super().__init__()
        self.conv1 = ConvBN(d, d, 3, groups=d)
        self.act = Gelu()
        self.conv2 = ConvBN(d, d, 3, groups=d).zero_init()

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """Apply the branch without skip."""
        return self.conv2(self.act(self.conv1(x_BDHW)))  # type: ignore[no-any-return]

    def emit(self, graph: GraphWriter, x: Value) -> Value:
        """Write Conv, Gelu, Conv."""
        return graph.conv(self.act.emit(graph, graph.conv(x, self.conv1)), self.conv2)


class ChannelBlock(nn.Module):
    """`A = softmax(temp * norm(q) norm(k)^T)` of 32x32 per head over channels; LPI; FFN.

    The L2 norms over tokens divide the 32x32 products instead of q and k: the same numbers for
    32 * T fewer divisions each.
    """

    def __init__(self, d: int) -> None:
        """Make the block; it starts as the identity."""
        super().__init__()
        self.heads = d // HEAD
        self.qkv = ConvBN(d, 3 * d)
        self.temp = nn.Parameter(torch.ones(self.heads, 1, 1))
        self.proj = ConvBN(d, d).zero_init()
        self.lpi = LocalInteraction(d)
        self.ffn = FeedForward(d)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """Attend over channels, interact locally, feed forward."""
        q_BNTE, k_BNTE, v_BNTE = heads_of(self.qkv(x_BDHW), self.heads)
        if q_BNTE.dtype == torch.float16:  # sums over thousands of tokens overflow it
            q_BNTE, k_BNTE = (
                F.normalize(x.float(), dim=-2, eps=EPS).half() for x in (q_BNTE, k_BNTE)
            )
        norms = q_BNTE.norm(dim=-2)[..., :, None] * k_BNTE.norm(dim=-2)[..., None, :]
        scores = (q_BNTE.transpose(-1, -2) @ k_BNTE) * (self.temp / norms.clamp_min(EPS))
        mixed = map_of(v_BNTE @ scores.softmax(-1).transpose(-1, -2), x_BDHW)
        x_BDHW = x_BDHW + self.proj(F.hardswish(mixed))
        x_BDHW = x_BDHW + self.lpi(x_BDHW)
        return x_BDHW + self.ffn(x_BDHW)  # type: ignore[no-any-return]

    def emit(self, graph: GraphWriter, x: Value) -> Value:
        """Write the deployed block; heads are [B, N, T, E] in a channels-last graph, else BNET."""
        B, D, H, W = x.shape
        # Three convolutions rather than one and a Split, which OpenVINO executes by copying.
        q, k, v = (self._heads(graph, graph.conv(x, part)) for part in split_conv(self.qkv, 3))
        with graph.full_precision():  # sums over thousands of tokens overflow float16
            over_tokens = -2 if graph.channels_last else -1
            norm_q, norm_k = (graph.norm_l2(graph.full(part), over_tokens) for part in (q, k))
        scores = graph.unary("Softmax", self._emit_cosines(graph, q, k, norm_q, norm_k), axis=-1)
        if graph.channels_last:
            mixed = graph.transpose(graph.matmul(v, graph.swap(scores)), 0, 2, 1, 3)
            mixed = graph.transpose(graph.reshape(mixed, B, H, W, D), 0, 3, 1, 2)
        else:
            mixed = graph.reshape(graph.matmul(scores, v), B, D, H, W)
        x = graph.add(x, graph.conv(graph.unary("HardSwish", mixed), self.proj))
        x = graph.add(x, self.lpi.emit(graph, x))
        return graph.add(x, self.ffn.emit(graph, x))

    def _heads(self, graph: GraphWriter, x: Value) -> Value:
        """Return a map by heads."""
        B, _, H, W = x.shape
        if graph.channels_last:
            x = graph.reshape(graph.transpose(x, 0, 2, 3, 1), B, H * W, self.heads, HEAD)
            return graph.transpose(x, 0, 2, 1, 3)
        N = (self.heads,) if B == 1 else (B, self.heads)
        return graph.reshape(x, *N, HEAD, H * W)

    def _emit_cosines(
        self, graph: GraphWriter, q: Value, k: Value, norm_q: Value, norm_k: Value
    ) -> Value:
        """Return the products of all channels, over their norms, times the temperature."""

        def outer(a: Value, b: Value, product: Callable[[Value, Value], Value]) -> Value:
            return product(graph.swap(a), b) if graph.channels_last else product(a, graph.swap(b))

        if graph.half:  # the products must not grow: normalised first
            with graph.full_precision():
                q, k = (
                    graph.binary("Div", graph.full(x), graph.binary("Max", norm, graph.scalar(EPS)))
                    for x, norm in ((q, norm_q), (k, norm_k))
                )
            cosines = outer(graph.working(q), graph.working(k), graph.matmul)
            return graph.binary("Mul", cosines, graph.const(self.temp))
        norms = outer(norm_q, norm_k, partial(graph.binary, "Mul"))
        norms = graph.binary("Max", norms, graph.scalar(EPS))
        factor = graph.binary("Div", graph.const(self.temp), norms)
        return graph.binary("Mul", outer(q, k, graph.matmul), factor)


def macs_of(d: int, cells: int) -> Macs:
    """Multiply-adds of one block of width d."""
    return Macs(12 * d * d * cells + 18 * d * cells, 64 * d * cells)


def params_of(d: int) -> int:
    """Deployed parameters of one block of width d."""
    lpi = 2 * (9 * d + d)
    return conv_params(d, 3 * d, 1) + d // HEAD + conv_params(d, d, 1) + lpi + FeedForward.params(d)


def inherit(old: ChannelBlock, new: ChannelBlock, streams: Streams) -> None:
    """Copy a block of a wide network into a narrow one; whole heads are removed."""
    own = streams.own
    heads = copy_attention(old, new, streams, value=HEAD, rows=rows_by_part(old, HEAD))
    new.temp.copy_(old.temp[heads])
    copy_conv(old.lpi.conv1, new.lpi.conv1, own, own)
    copy_conv(old.lpi.conv2, new.lpi.conv2, own, own)


def _scales(unit: ChannelBlock) -> list[Tensor]:
    return [*attention_scales(unit), unit.lpi.conv2.bn.weight.abs()]


OPERATOR = Operator(
    build=lambda entry: ChannelBlock(entry.d_in),
    macs=lambda entry: macs_of(entry.d_in, entry.h * entry.w),
    params=lambda entry: params_of(entry.d_in),
    inputs=same_shape,
    outputs=same_shape,
    keeps_map=True,
    hidden=4,
    inherit=inherit,
    scales=_scales,
)
