"""Multiply-adds of a network as torch's own counter has them."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.operators.entries import Macs


def on_meta(architecture: Architecture) -> Detector:
    """Return the deployed form of a network on the meta device."""
    with torch.device("meta"):
        return Detector(architecture).deployed()


def torch_macs(network: Detector) -> Macs:
    """Count a network of `on_meta`."""
    height, width = network.architecture.input_size
    image = torch.empty((1, height, width, 3), dtype=torch.uint8, device="meta")
    with FlopCounterMode(display=False) as counter:
        network(image)
    flops = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    return Macs(flops.pop("aten.convolution") // 2, sum(flops.values()) // 2)
