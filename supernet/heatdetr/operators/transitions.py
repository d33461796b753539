"""The stem, and the convolutions that take one stage to the next."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...graph.nodes import Value
from ...graph.writer import GraphWriter
from .base import Operator, Shape, same_shape
from .convbn import ConvBN, conv_macs, conv_params, half
from .cutting import Streams, copy_conv
from .entries import Entry, Macs


class Stem(nn.Module):
    """Three 3x3 convolutions of stride 2, ReLU after the first two: image to stride 8."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(3, d // 2, 3, 2)
        self.conv2 = ConvBN(d // 2, d, 3, 2)
        self.conv3 = ConvBN(d, d, 3, 2)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """Return the map at stride 8."""
        x = F.relu(self.conv2(F.relu(self.conv1(image_B3HW))))
        return self.conv3(x)  # type: ignore[no-any-return]

    def emit(self, graph: GraphWriter, x: Value) -> Value:
        """Write the three convolutions."""
        for conv in (self.conv1, self.conv2):
            x = graph.unary("Relu", graph.conv(x, conv))
        return graph.conv(x, self.conv3)


class Down(nn.Module):
    """ConvBN3x3 of stride 2."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.conv = ConvBN(d_in, d_out, 3, 2)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """Halve the map."""
        return self.conv(x_BDHW)  # type: ignore[no-any-return]

    def emit(self, graph: GraphWriter, x: Value) -> Value:
        """Write the convolution."""
        return graph.conv(x, self.conv)


def avgpool(x_BDHW: Tensor) -> Tensor:
    """Pool 2x2 with stride 2, ceil mode, padding not counted (spec section 1)."""
    return F.avg_pool2d(x_BDHW, 2, 2, ceil_mode=True, count_include_pad=False)


class PoolDown(Down):
    """AvgPool, then ConvBN3x3 of stride 2; returns (pooled map, new stage's input)."""

    def forward(self, x_BDHW: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return the map at half and at quarter size."""
        pooled = avgpool(x_BDHW)
        return pooled, self.conv(pooled)

    def emit(self, graph: GraphWriter, x: Value) -> tuple[Value, Value]:  # type: ignore[override]
        """Write the pool and the convolution."""
        pooled = graph.avgpool(x)
        return pooled, graph.conv(pooled, self.conv)


def _stem_macs(entry: Entry) -> Macs:
    d, (h2, w2) = entry.d_out, (half(entry.h), half(entry.w))
    h4, w4 = half(h2), half(w2)
    return (
        conv_macs(3, d // 2, 3, h2 * w2)
        + conv_macs(d // 2, d, 3, h4 * w4)
        + conv_macs(d, d, 3, half(h4) * half(w4))
    )


def _stem_params(entry: Entry) -> int:
    d = entry.d_out
    return conv_params(3, d // 2, 3) + conv_params(d // 2, d, 3) + conv_params(d, d, 3)


def _down_params(entry: Entry) -> int:
    return conv_params(entry.d_in, entry.d_out, 3)


def _halved(entry: Entry, channels: int, times: int) -> Shape:
    height, width = entry.h, entry.w
    for _ in range(times):
        height, width = half(height), half(width)
    return (channels, height, width)


def _conv_macs(entry: Entry, times: int) -> Macs:
    _, height, width = _halved(entry, 0, times)
    return conv_macs(entry.d_in, entry.d_out, 3, height * width)


def _inherit_stem(old: Stem, new: Stem, streams: Streams) -> None:
    inner1 = streams.pick(old.conv1.bn.weight.abs(), new.conv1.bn.num_features)
    inner2 = streams.pick(old.conv2.bn.weight.abs(), new.conv2.bn.num_features)
    copy_conv(old.conv1, new.conv1, inner1, torch.arange(3))
    copy_conv(old.conv2, new.conv2, inner2, inner1)
    copy_conv(old.conv3, new.conv3, streams.own, inner2)


def _inherit_down(old: Down, new: Down, streams: Streams) -> None:
    copy_conv(old.conv, new.conv, streams.own, streams.before)


STEM = Operator(
    build=lambda entry: Stem(entry.d_out),
    macs=_stem_macs,
    params=_stem_params,
    inputs=same_shape,
    outputs=lambda entry: (_halved(entry, entry.d_out, 3),),
    narrow=lambda entry: replace(entry, d_in=3, d_out=32),
    inherit=_inherit_stem,
)
DOWN = Operator(
    build=lambda entry: Down(entry.d_in, entry.d_out),
    macs=lambda entry: _conv_macs(entry, 1),
    params=_down_params,
    inputs=same_shape,
    outputs=lambda entry: (_halved(entry, entry.d_out, 1),),
    inherit=_inherit_down,
)
POOL_DOWN = Operator(
    build=lambda entry: PoolDown(entry.d_in, entry.d_out),
    macs=lambda entry: _conv_macs(entry, 2),
    params=_down_params,
    inputs=same_shape,
    outputs=lambda entry: (_halved(entry, entry.d_in, 1), _halved(entry, entry.d_out, 2)),
    inherit=_inherit_down,
)
