"""A DETR small enough for tests, and what to do with it."""

import torch
from torch import Tensor, nn

from supernet.detr import DetrArchitecture
from supernet.detr.resnet import FrozenNorm

SMALL = DetrArchitecture(
    name="small",
    num_classes=5,
    input_size=(96, 160),
    depth=18,
    base=8,
    width=32,
    heads=4,
    encoder_layers=2,
    decoder_layers=2,
    hidden=48,
    queries=7,
)


def trainable(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def shaken(network: nn.Module) -> nn.Module:
    """Give everything random values, normalisation too."""
    for module in network.modules():
        if isinstance(module, FrozenNorm | nn.BatchNorm2d):
            for value, low, high in (
                (module.weight, 0.5, 1.0),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 2.0),
            ):
                assert isinstance(value, Tensor)
                nn.init.uniform_(value, low, high)
    return network.eval()


def images(B: int = 1, size: tuple[int, int] = (96, 160)) -> Tensor:
    return torch.randint(0, 256, (B, *size, 3), dtype=torch.uint8)
