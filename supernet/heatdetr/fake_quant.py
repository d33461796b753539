"""INT8 simulated in torch: weights and inputs of convolutions are quantized to 8 bits."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .detector import Detector
from .quantization import LEVELS, Quantization, calibrate, convolutions


class _Quantized(nn.Module):
    """A convolution whose weights and inputs are quantized to 8 bits."""

    def __init__(self, layer: nn.Conv2d, limit: float, output_limit: float | None) -> None:
        super().__init__()
        self.layer = layer
        weight = layer.weight.detach()
        scale = weight.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-12) / LEVELS
        layer.weight.data = (weight / scale).round() * scale
        self.step = limit / LEVELS
        self.output_step = None if output_limit is None else output_limit / LEVELS

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(_quantized(x, self.step))
        return y if self.output_step is None else _quantized(y, self.output_step)


def _quantized(x: Tensor, step: float) -> Tensor:
    return (x / step).round().clamp(-LEVELS - 1, LEVELS) * step


@torch.no_grad()
def simulate_int8(
    network: Detector, image_batches: Iterable[Tensor], plan: Quantization | None = None
) -> Detector:
    """Return a folded copy that quantizes as `heat export --precision int8` does.

    Without a plan all convolutions are quantized, over their ranges on `image_batches`, uint8
    [B, H, W, 3].
    """
    copy = network.deployed()
    plan = plan or calibrate(copy, image_batches)
    for name, layer in convolutions(copy).items():
        limit = plan.limit(name)
        if limit is not None:
            path, _, last = name.rpartition(".")
            setattr(
                copy.units.get_submodule(path),
                last,
                _Quantized(layer, limit, plan.output_limit(name)),
            )
    return copy
