"""Detection loss: sigmoid focal loss on classes, GIoU on matched boxes (spec section 6)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.ground_truth import GroundTruth
from ..heatdetr.operators.decode import Decode
from .box_loss import BoxLoss
from .distributed import per_process
from .head_maps import Maps
from .matching import IGNORED, match

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0


@dataclass(frozen=True, slots=True)
class Loss:
    """The terms, weighted and divided by the weights of the positive pairs, and their number."""

    terms: Mapping[str, Tensor]
    """`classes`, `boxes`, and `sides` of a head that predicts distributions."""
    positives: int

    @property
    def total(self) -> Tensor:
        """Sum of the terms."""
        return torch.stack(list(self.terms.values())).sum()


def focal_loss(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum of the sigmoid focal loss (Lin et al. 2017); `weights` broadcast with the logits."""
    p = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p_true = p * targets + (1 - p) * (1 - targets)
    alpha = FOCAL_ALPHA * targets + (1 - FOCAL_ALPHA) * (1 - targets)
    loss = alpha * (1 - p_true) ** FOCAL_GAMMA * cross_entropy
    return loss.sum() if weights is None else (loss * weights).sum()


def detection_loss(maps: Maps, targets: Sequence[GroundTruth], decode: Decode) -> Loss:
    """Match every image and return the loss of a head's maps; gradients reach all of them."""
    logits_BAKhw = maps[0]
    B, _, K = logits_BAKhw.shape[:3]
    boxes = BoxLoss(maps, decode)
    logits_BMK = logits_BAKhw.flatten(3).transpose(2, 3).reshape(B, -1, K)
    classes = logits_BAKhw.new_zeros(())
    divisor = logits_BAKhw.new_zeros(())
    positives = 0
    for index, (logits_MK, target) in enumerate(zip(logits_BMK, targets, strict=True)):
        predicted_M4 = boxes.predicted_BM4[index].detach()
        matched = match(boxes.anchors_M4, predicted_M4, target.boxes_xyxy, target.labels)
        valid_M = matched.targets_M != IGNORED
        one_hot_MK = F.one_hot(matched.targets_M.clamp_min(0), K).to(logits_MK)
        one_hot_MK = one_hot_MK * (matched.targets_M >= 0)[:, None]
        weights_P = target.shares[matched.boxes_P]
        weights_M = torch.ones_like(logits_MK[:, 0]).scatter_reduce(
            0, matched.anchors_P, weights_P, "amax", include_self=False
        )
        classes = classes + focal_loss(
            logits_MK[valid_M], one_hot_MK[valid_M], weights_M[valid_M][:, None]
        )
        boxes.add(index, matched.anchors_P, target.boxes_xyxy[matched.boxes_P], weights_P)
        divisor = divisor + weights_P.sum()
        positives += len(matched.anchors_P)
    divisor = per_process(divisor)
    return Loss({"classes": classes / divisor, **boxes.over(divisor)}, positives)
