"""INT8 simulated in torch: what a network loses when weights and inputs are rounded to 8 bits."""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from .detector import Detector

LEVELS = 127


class _Rounded(nn.Module):
    """A convolution or linear layer whose weights and inputs are rounded to 8 bits."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        weight = cast(Tensor, layer.weight).detach()
        scale = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True) / LEVELS
        scale = scale.clamp(min=1e-12)
        cast(nn.Parameter, layer.weight).data = (weight / scale).round() * scale
        self.largest = 0.0
        self.watching = True

    def forward(self, x: Tensor) -> Tensor:
        if self.watching:
            self.largest = max(self.largest, float(x.abs().max()))
        else:
            scale = max(self.largest, 1e-12) / LEVELS
            x = (x / scale).round().clamp(-LEVELS, LEVELS) * scale
        return cast(Tensor, self.layer(x))


@torch.no_grad()
def simulate_int8(network: Detector, image_batches: Iterable[Tensor]) -> Detector:
    """Return a folded copy with symmetric 8-bit weights per channel and inputs per tensor.

    The inputs' ranges are the largest magnitudes on `image_batches`, uint8 [B, H, W, 3].
    """
    copy = network.deployed()
    found: list[_Rounded] = []
    for parent in list(copy.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d | nn.Linear):
                rounded = _Rounded(child)
                setattr(parent, name, rounded)
                found.append(rounded)
    for images in image_batches:
        copy(images)
    for rounded in found:
        rounded.watching = False
    return copy
