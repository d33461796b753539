"""Recomputes BatchNorm statistics after a network was cut (spec section 10)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def recalibrate(network: nn.Module, image_batches: Iterable[Tensor]) -> None:
    """Replace running statistics by the plain mean over batches of training images.

    Give at least 64 images [B, H, W, 3] uint8, augmented as in training (`train/shown.py`); the
    network is left in evaluation mode.
    """
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    for images in image_batches:
        network(images)
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
