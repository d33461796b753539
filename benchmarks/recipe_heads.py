"""Levers of the recipe: other kernels of the head's convolutions."""

import torch
from torch import nn

from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.operators.head import Head


def with_kernels(
    architecture: Architecture, *, boxes: int | None = None, scores: int | None = None
) -> Detector:
    """Return a new network whose boxes, or classes and objectness, have kernels of other sides."""
    network = Detector(architecture)
    head = network.units["head"]
    assert isinstance(head, Head)
    sides = {"box": boxes, "cls": scores, "obj": scores}
    for name, side in sides.items():
        if side is not None:
            setattr(head, name, _like(getattr(head, name), side))
    return network


def _like(old: nn.Conv2d, side: int) -> nn.Conv2d:
    """Return a convolution with the biases of another one and new weights."""
    new = nn.Conv2d(old.in_channels, old.out_channels, side, padding=side // 2)
    nn.init.normal_(new.weight, std=0.01)
    assert new.bias is not None and old.bias is not None
    with torch.no_grad():
        new.bias.copy_(old.bias)
    return new
