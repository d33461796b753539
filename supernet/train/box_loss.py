"""The loss of the boxes of one head: GIoU, and that of the distributions where it predicts them.

Distribution focal loss (Li et al. 2020, Generalized Focal Loss, equation 6): the two bins beside a
distance learn their shares of it. Distances beyond the bins are taken as the outermost.

Shape suffixes: B batch, A anchors per cell, N bins, M anchors of one image, P positive pairs.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..boxes import giou_pairs, xyxy_to_cxcywh
from ..heatdetr.operators.decode import Decode
from ..heatdetr.operators.distributions import BINS, FIRST, STEP
from .head_maps import Maps

SIDES_WEIGHT = 0.2
"""Weight of the distributions' loss, that of GIoU being 1: 1.5 to 7.5 in YOLOv8."""


class BoxLoss:
    """Adds up the loss of positive pairs, image by image; gradients reach the maps of boxes."""

    def __init__(self, maps: Maps, decode: Decode) -> None:
        """Begin with no pairs; `maps` are float32."""
        deltas_BA4hw = maps[1]
        h, w = deltas_BA4hw.shape[-2:]
        self.anchors_M4 = decode.anchors_xyxy(h, w).to(deltas_BA4hw.device)
        self.predicted_BM4 = decode.boxes(deltas_BA4hw)
        self.boxes = deltas_BA4hw.sum() * 0.0
        """Sum of the pairs' `1 - GIoU`, weighted."""
        self._bins_BM4N = None
        self.sides = None
        """Sum of their distributions' loss, weighted, of heads that predict them."""
        if len(maps) == 3:
            self._bins_BM4N = maps[2].permute(0, 1, 4, 5, 2, 3).flatten(1, 3)
            self.sides = maps[2].sum() * 0.0

    def add(self, image: int, anchors_P: Tensor, boxes_P4: Tensor, weights_P: Tensor) -> None:
        """Add pairs of an anchor and a box, xyxy in pixels of the input."""
        hit_P = giou_pairs(self.predicted_BM4[image][anchors_P], boxes_P4)
        self.boxes = self.boxes + (weights_P * (1 - hit_P)).sum()
        if self._bins_BM4N is not None and self.sides is not None:
            distances_P4 = side_distances(self.anchors_M4[anchors_P], boxes_P4)
            own_P = distribution_loss(self._bins_BM4N[image][anchors_P], distances_P4)
            self.sides = self.sides + (weights_P * own_P).sum()

    def over(self, divisor: Tensor, weight: float = 1.0) -> dict[str, Tensor]:
        """Return the terms, `boxes` and `sides`, divided; `weight` is that of GIoU."""
        terms = {"boxes": weight * self.boxes / divisor}
        if self.sides is not None:
            terms["sides"] = weight * SIDES_WEIGHT * self.sides / divisor
        return terms


def side_distances(anchors_P4: Tensor, boxes_P4: Tensor) -> Tensor:
    """Return how far left, top, right, bottom are from anchors' centres, in their sides, [P, 4]."""
    anchors_P4 = xyxy_to_cxcywh(anchors_P4)
    centre_P2, side_P2 = anchors_P4[:, :2], anchors_P4[:, 2:]
    before_P2, after_P2 = centre_P2 - boxes_P4[:, :2], boxes_P4[:, 2:] - centre_P2
    return torch.cat([before_P2 / side_P2, after_P2 / side_P2], -1)


def distribution_loss(logits_P4N: Tensor, distances_P4: Tensor) -> Tensor:
    """Return the loss of each pair, the mean over its sides, [P]."""
    place_P4 = ((distances_P4 - FIRST) / STEP).clamp(0.0, BINS - 1)
    low_P4 = place_P4.floor().clamp_max(BINS - 2)
    above_P4 = place_P4 - low_P4
    beside_P42 = torch.stack([low_P4, low_P4 + 1], -1).long()
    shares_P42 = torch.stack([1 - above_P4, above_P4], -1)
    log_P42 = F.log_softmax(logits_P4N, -1).gather(-1, beside_P42)
    return -(log_P42 * shares_P42).sum(-1).mean(-1)
