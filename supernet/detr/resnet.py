"""ResNet (He et al. 2015) as DETR uses it: keys of torchvision's layers, stride 32, or 16 with DC5.

With `frozen` normalisation statistics and affine are constants, and the stem and the first stage do
not train: the layout of published DETR checkpoints. Training from scratch needs `frozen=False`.

Shape suffixes: B batch, C channels, H height, W width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..graph.folding import conv_from, fold_bn
from ..graph.nodes import Value
from ..graph.writer import GraphWriter

BLOCKS: Mapping[int, tuple[int, int, int, int]] = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
"""Blocks of a stage by depth; from 50 on they are bottlenecks."""


class FrozenNorm(nn.Module):
    """BatchNorm whose weight, bias, mean and variance are constants."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    eps = 1e-5

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "running_var"):
            self.register_buffer(name, torch.ones(channels))
        for name in ("bias", "running_mean"):
            self.register_buffer(name, torch.zeros(channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the normalised map."""
        factor = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * factor
        return x_BCHW * factor[:, None, None] + shift[:, None, None]


def _norm(channels: int, frozen: bool) -> nn.Module:
    return FrozenNorm(channels) if frozen else nn.BatchNorm2d(channels)


def _conv(d_in: int, d_out: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(d_in, d_out, kernel, stride, padding, dilation, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def emit_conv_norm(graph: GraphWriter, x: Value, conv: nn.Module, norm: nn.Module) -> Value:
    """Write a convolution with its normalisation folded in."""
    assert isinstance(conv, nn.Conv2d)
    weight, bias = fold_bn(conv.weight, norm)  # type: ignore[arg-type]
    folded = conv_from(weight, bias, conv.stride[0])
    folded.padding, folded.dilation = conv.padding, conv.dilation
    folded.heat_name = str(getattr(conv, "heat_name", ""))  # type: ignore[assignment]
    return graph.conv(x, folded)


class Block(nn.Module):
    """A residual block: two 3x3 convolutions, or a bottleneck of 1x1, 3x3, 1x1."""

    def __init__(
        self, d_in: int, d: int, *, bottleneck: bool, stride: int, dilation: int, frozen: bool
    ) -> None:
        """Build its layers, and a projection of the skip where shapes differ."""
        super().__init__()
        d_out = 4 * d if bottleneck else d
        if bottleneck:
            self.conv1, self.bn1 = _conv(d_in, d, 1), _norm(d, frozen)
            self.conv2, self.bn2 = _conv(d, d, 3, stride, dilation), _norm(d, frozen)
            self.conv3, self.bn3 = _conv(d, d_out, 1), _norm(d_out, frozen)
        else:
            self.conv1, self.bn1 = _conv(d_in, d, 3, stride, dilation), _norm(d, frozen)
            self.conv2, self.bn2 = _conv(d, d, 3, 1, dilation), _norm(d, frozen)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or d_in != d_out:
            self.downsample = nn.Sequential(_conv(d_in, d_out, 1, stride), _norm(d_out, frozen))
        self.bottleneck = bottleneck

    def _layers(self) -> list[tuple[nn.Module, nn.Module]]:
        layers: list[tuple[nn.Module, nn.Module]] = [
            (self.conv1, self.bn1),
            (self.conv2, self.bn2),
        ]
        return [*layers, (self.conv3, self.bn3)] if self.bottleneck else layers

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return ReLU(branch + skip)."""
        y, layers = x_BCHW, self._layers()
        for number, (conv, norm) in enumerate(layers, 1):
            y = norm(conv(y))
            if number < len(layers):
                y = y.relu()
        skip = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        return (y + skip).relu()

    def emit(self, graph: GraphWriter, x: Value) -> Value:
        """Write the folded convolutions and the sum."""
        y, layers = x, self._layers()
        for number, (conv, norm) in enumerate(layers, 1):
            y = emit_conv_norm(graph, y, conv, norm)
            if number < len(layers):
                y = graph.unary("Relu", y)
        if self.downsample is not None:
            x = emit_conv_norm(graph, x, self.downsample[0], self.downsample[1])
        return graph.unary("Relu", graph.add(y, x))


class ResNet(nn.Module):
    """Maps of four stages of an image."""

    def __init__(
        self, depth: int = 50, base: int = 64, *, dilation: bool = False, frozen: bool = True
    ) -> None:
        """Build four stages of widths base, 2 base, 4 base, 8 base (times 4 with bottlenecks)."""
        super().__init__()
        bottleneck = depth >= 50
        self.conv1, self.bn1 = nn.Conv2d(3, base, 7, 2, 3, bias=False), _norm(base, frozen)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        d_in = base
        self.widths: list[int] = []
        """Channels of every stage's map."""
        for stage, blocks in enumerate(BLOCKS[depth]):
            d = base * 2**stage
            dilated = dilation and stage == 3
            parts = []
            for number in range(blocks):
                parts.append(
                    Block(
                        d_in, d, bottleneck=bottleneck, frozen=frozen,
                        stride=2 if number == 0 and stage and not dilated else 1,
                        dilation=2 if dilated and number else 1,
                    )
                )  # fmt: skip
                d_in = 4 * d if bottleneck else d
            setattr(self, f"layer{stage + 1}", nn.Sequential(*parts))
            self.widths.append(d_in)
        if frozen:
            for part in (self.conv1, self._stages()[0]):
                part.requires_grad_(False)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        """Return the last map."""
        return self.maps(x_B3HW)[-1]

    def maps(self, x_B3HW: Tensor) -> list[Tensor]:
        """Return every stage's map."""
        x = self.maxpool(self.bn1(self.conv1(x_B3HW)).relu())
        found = []
        for stage in self._stages():
            x = stage(x)
            found.append(x)
        return found

    def _stages(self) -> tuple[nn.Sequential, ...]:
        return tuple(self.get_submodule(f"layer{stage}") for stage in (1, 2, 3, 4))  # type: ignore[misc]

    def emit(self, graph: GraphWriter, image: Value) -> list[Value]:
        """Write every stage's map."""
        x = graph.unary("Relu", emit_conv_norm(graph, image, self.conv1, self.bn1))
        B, C, H, W = x.shape
        shape = (B, C, (H + 1) // 2, (W + 1) // 2)
        x = graph.op("MaxPool", [x], shape, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
        found = []
        for stage in self._stages():
            for block in stage:
                assert isinstance(block, Block)
                x = block.emit(graph, x)
            found.append(x)
        return found
