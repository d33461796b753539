"""Sine position encodings, y then x (Vaswani et al. 2017; Carion et al. 2020).

Shape suffixes: B batch, h and w cells of a map, D channels.
"""

import math

import torch
from torch import Tensor

TEMPERATURE = 10_000.0


def sine(places: Tensor, channels: int) -> Tensor:
    """Encode numbers [...] as [..., channels]: sine and cosine in turns, of falling frequency."""
    step = torch.arange(channels, dtype=torch.float32, device=places.device)
    periods = TEMPERATURE ** (2 * (step // 2) / channels)
    angles = places[..., None] / periods
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], -1).flatten(-2)


def of_map(pad_Bhw: Tensor, channels: int, offset: float = 0.0) -> Tensor:
    """Encode the cells of maps, counted without padding, [B, h, w, D].

    Places go to 2 pi at the last valid cell; `offset` is subtracted from the count (SAM-DETR: .5).
    """
    valid = (~pad_Bhw).float()
    encoded = []
    for axis in (1, 2):
        count = valid.cumsum(axis)
        last = count.narrow(axis, count.shape[axis] - 1, 1)
        encoded.append(sine((count - offset) / (last + 1e-6) * 2 * math.pi, channels // 2))
    return torch.cat(encoded, -1)


def cell_centres(cells: tuple[int, int], device: torch.device) -> Tensor:
    """Return the centre (x, y) of every cell of a map, row by row, in cells [h * w, 2]."""
    y, x = torch.meshgrid(*(torch.arange(n, device=device) + 0.5 for n in cells), indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1)


def of_points(points_xy: Tensor, channels: int) -> Tensor:
    """Encode points (x, y), as shares of the image [..., 2], as [..., D]."""
    scaled = points_xy * 2 * math.pi
    return torch.cat([sine(scaled[..., 1], channels // 2), sine(scaled[..., 0], channels // 2)], -1)
