"""Boxes and detections. Boxes are xyxy or cxcywh in pixels of one image, [N, 4]."""

from dataclasses import dataclass

import torch
from torch import Tensor

KEEP = 100
"""Largest number of detections of an image."""


@dataclass(frozen=True, slots=True)
class Detections:
    """Detections of one image, highest score first."""

    boxes_xyxy: Tensor
    """Corners in pixels of the network input, [N, 4]."""
    scores: Tensor
    """Probabilities, [N]."""
    labels: Tensor
    """Class indices, [N] int64."""


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Convert corners to centre and size."""
    x0, y0, x1, y1 = boxes_xyxy.unbind(-1)
    return torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], -1)


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Convert centre and size to corners."""
    cx, cy, w, h = boxes_cxcywh.unbind(-1)
    return torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], -1)


def area(boxes_xyxy: Tensor) -> Tensor:
    """Return the areas, [...], 0 for boxes with a negative side."""
    return (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp_min(0).prod(-1)


def iou_matrix(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return the IoU of every pair, [len(a), len(b)]."""
    low = torch.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])
    high = torch.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    overlap = (high - low).clamp_min(0).prod(-1)
    union = area(a_xyxy)[:, None] + area(b_xyxy)[None] - overlap
    return overlap / union.clamp_min(1e-9)


def giou_pairs(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Return the generalised IoU of matching boxes, broadcast [...] (Rezatofighi et al. 2019)."""
    low = torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    high = torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    overlap = (high - low).clamp_min(0).prod(-1)
    union = (area(a_xyxy) + area(b_xyxy) - overlap).clamp_min(1e-9)
    hull_low = torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    hull_high = torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    hull = (hull_high - hull_low).clamp_min(0).prod(-1).clamp_min(1e-9)
    return overlap / union - (hull - union) / hull
