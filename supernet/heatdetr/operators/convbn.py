"""Convolution with Linear-BN, its folding, and the feed-forward branch made of two of them.

Shape suffixes: B batch, C/D channels, H height, W width (cells).
"""

import torch
from torch import Tensor, nn

from ...graph.folding import conv_from, fold_bn
from ...graph.nodes import Value
from ...graph.writer import GraphWriter
from .entries import Macs


class ConvBN(nn.Module):
    """Convolution without bias, padding k // 2, then BatchNorm (spec section 1)."""

    def __init__(
        self, d_in: int, d_out: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        """Build the layer; 1x1 kernels start from a truncated normal of 0.02."""
        super().__init__()
        self.conv = nn.Conv2d(d_in, d_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(d_out)
        if kernel == 1:
            nn.init.trunc_normal_(self.conv.weight, std=0.02)
        else:
            nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return `bn(conv(x))`."""
        return self.bn(self.conv(x_BCHW))  # type: ignore[no-any-return]

    def zero_init(self) -> "ConvBN":
        """Start the branch that ends here at zero, so that a fresh block is the identity."""
        nn.init.zeros_(self.bn.weight)
        return self

    def fold(self) -> nn.Conv2d:
        """Return one convolution with bias (spec section 4, rule 1)."""
        weight, bias = fold_bn(self.conv.weight, self.bn)
        return conv_from(weight, bias, self.conv.stride[0], self.conv.groups)


class Gelu(nn.GELU):
    """Exact GELU."""

    def emit(self, graph: GraphWriter, x: Value) -> Value:
        """Write Gelu, as one node where the opset has it."""
        return graph.gelu(x)


class FeedForward(nn.Module):
    """ConvBN1x1(D -> 4D), GELU, ConvBN1x1(4D -> D); the caller adds the skip."""

    def __init__(self, d: int) -> None:
        """Build the branch; it starts at zero."""
        super().__init__()
        self.fc1 = ConvBN(d, 4 * d)
        self.act = Gelu()
        self.fc2 = ConvBN(4 * d, d).zero_init()

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """Apply the branch without skip."""
        return self.fc2(self.act(self.fc1(x_BDHW)))  # type: ignore[no-any-return]

    def emit(self, graph: GraphWriter, x: Value) -> Value:
        """Write Conv, Gelu, Conv."""
        return graph.conv(self.act.emit(graph, graph.conv(x, self.fc1)), self.fc2)

    @staticmethod
    def params(d: int) -> int:
        """Count deployed parameters."""
        return 8 * d * d + 5 * d


class DropPath(nn.Module):
    """Stochastic depth: drops a whole residual branch per image while training."""

    def __init__(self, rate: float = 0.0) -> None:
        """Start with a drop probability, which training may change."""
        super().__init__()
        self.rate = rate

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """Scale kept branches by 1 / (1 - rate)."""
        if not self.training or self.rate == 0.0:
            return x_BDHW
        keep_B = torch.rand(x_BDHW.shape[0], device=x_BDHW.device) >= self.rate
        return x_BDHW * (keep_B.to(x_BDHW.dtype) / (1.0 - self.rate))[:, None, None, None]


def conv_macs(d_in: int, d_out: int, kernel: int, cells: int) -> Macs:
    """Multiply-adds of a dense convolution with `cells` output positions."""
    return Macs(conv_linear=kernel * kernel * d_in * d_out * cells)


def conv_params(d_in: int, d_out: int, kernel: int) -> int:
    """Parameters of a dense convolution with bias."""
    return kernel * kernel * d_in * d_out + d_out


def half(side: int) -> int:
    """Return the ceil-half of a side."""
    return (side + 1) // 2
