"""RepCNN: three branches in training, one 3x3 convolution when deployed (RepVGG)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...graph.folding import conv_from, fold_bn
from ...graph.nodes import Value
from ...graph.writer import GraphWriter
from .base import Operator, same_shape
from .convbn import ConvBN, conv_macs, conv_params
from .cutting import Streams, copy_bn, copy_conv
from .entries import Entry, Macs


class RepCNN(nn.Module):
    """`ReLU(BN(conv3x3(x)) + BN(conv1x1(x)) + BN(x))`, width and stride kept."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.conv3 = ConvBN(d, d, 3)
        self.conv1 = ConvBN(d, d, 1)
        self.identity = nn.BatchNorm2d(d)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """Return the ReLU of the sum of the branches."""
        return F.relu(self.conv3(x_BDHW) + self.conv1(x_BDHW) + self.identity(x_BDHW))

    def fold(self) -> nn.Module:
        """Return the deployed form (spec section 4, rule 2)."""
        kernel, bias = fold_bn(self.conv3.conv.weight, self.conv3.bn)
        unit = torch.eye(kernel.shape[0], device=kernel.device)[:, :, None, None]
        for weight, bn in ((self.conv1.conv.weight, self.conv1.bn), (unit, self.identity)):
            point, shift = fold_bn(weight, bn)
            kernel = kernel + F.pad(point, (1, 1, 1, 1))
            bias = bias + shift
        return ConvRelu(conv_from(kernel, bias))


class ConvRelu(nn.Module):
    """A folded convolution and ReLU."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """Return `relu(conv(x))`."""
        return F.relu(self.conv(x_BDHW))

    def emit(self, graph: GraphWriter, x: Value) -> Value:
        """Write Conv, Relu."""
        return graph.unary("Relu", graph.conv(x, self.conv))


class RepCNNUnit(nn.Module):
    """RepCNN as a table entry."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.block: nn.Module = RepCNN(d)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """Return the map after the block."""
        return self.block(x_BDHW)  # type: ignore[no-any-return]

    def emit(self, graph: GraphWriter, x: Value) -> Value:
        """Write the folded block."""
        assert isinstance(self.block, ConvRelu), "fold() first"
        return self.block.emit(graph, x)


def _macs(entry: Entry) -> Macs:
    return conv_macs(entry.d_in, entry.d_out, 3, entry.h * entry.w)


def _params(entry: Entry) -> int:
    return conv_params(entry.d_in, entry.d_out, 3)


def _inherit(old: RepCNNUnit, new: RepCNNUnit, streams: Streams) -> None:
    wide, narrow, own = old.block, new.block, streams.own
    assert isinstance(wide, RepCNN) and isinstance(narrow, RepCNN)
    copy_conv(wide.conv3, narrow.conv3, own, own)
    copy_conv(wide.conv1, narrow.conv1, own, own)
    copy_bn(wide.identity, narrow.identity, own)


def _scales(unit: RepCNNUnit) -> list[Tensor]:
    block = unit.block
    assert isinstance(block, RepCNN)
    return [bn.weight.abs() for bn in (block.conv3.bn, block.conv1.bn, block.identity)]


OPERATOR = Operator(
    build=lambda entry: RepCNNUnit(entry.d_in),
    macs=_macs,
    params=_params,
    inputs=same_shape,
    outputs=same_shape,
    keeps_map=True,
    letter="R",
    reduction="RR",
    inherit=_inherit,
    scales=_scales,
)
