"""Task-aligned label assignment and its loss, of one-to-one and one-to-many heads.

The alignment metric of an anchor and a box is `t = p^alpha * IoU^beta` (Feng et al. 2021, TOOD).
The `top` anchors of each box are assigned to it: 10 of a one-to-many head, 1 of a one-to-one head.
Both rank by the same metric, so the one is the best of the many (consistent dual assignment, Wang
et al. 2024, YOLOv10).
Shape suffixes: B batch, A anchors per cell, K classes, M anchors of one image, N boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..boxes import iou_matrix
from ..data.ground_truth import GroundTruth
from ..heatdetr.operators.decode import Decode
from .box_loss import BoxLoss
from .distributed import per_process
from .head_maps import Maps, by_head
from .recipes import Assign
from .uniform import Loss, detection_loss

ALPHA, BETA = 0.5, 6.0
"""Exponents of the alignment metric."""
TOP_K = 10
CENTER_RADIUS = 0.75
"""Cells this near to the centre of a box may be assigned to it however small it is, in strides."""
BOX_WEIGHT = 5.0
"""Weight of the boxes' term; that of the classes is 1."""


@dataclass(frozen=True, slots=True)
class Aligned:
    """The assignment of one image."""

    anchors_P: Tensor
    """Anchors that are assigned to a box."""
    boxes_P: Tensor
    """The box of each."""
    targets_P: Tensor
    """Target of the score of that box's class."""


@torch.no_grad()
def align(
    centres_M2: Tensor,
    scores_MK: Tensor,
    predicted_M4: Tensor,
    target: GroundTruth,
    top: int,
    reach: float,
) -> Aligned:
    """Return the best `top` anchors of each box; an anchor of two boxes goes to the higher IoU."""
    boxes_N4, labels_N = target.boxes_xyxy, target.labels
    if len(boxes_N4) == 0:
        empty = labels_N.new_zeros(0)
        return Aligned(empty, empty, scores_MK.new_zeros(0))
    middle_N2 = (boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2
    half_N2 = ((boxes_N4[:, 2:] - boxes_N4[:, :2]) / 2).clamp_min(reach)
    inside_NM = ((centres_M2 - middle_N2[:, None]).abs() <= half_N2[:, None]).all(-1)
    iou_NM = iou_matrix(boxes_N4, predicted_M4)
    measure_NM = scores_MK.T[labels_N] ** ALPHA * iou_NM**BETA * inside_NM
    best_Nt, index_Nt = measure_NM.topk(min(top, measure_NM.shape[1]))
    chosen_NM = torch.zeros_like(inside_NM).scatter_(1, index_Nt, best_Nt > 0)
    owner_M = torch.where(chosen_NM, iou_NM, -1.0).argmax(0)
    anchors_P = chosen_NM.any(0).nonzero()[:, 0]
    boxes_P = owner_M[anchors_P]
    measure_P = measure_NM[boxes_P, anchors_P]
    strongest_N = measure_P.new_zeros(len(boxes_N4)).scatter_reduce(0, boxes_P, measure_P, "amax")
    hit_N = measure_P.new_zeros(len(boxes_N4)).scatter_reduce(
        0, boxes_P, iou_NM[boxes_P, anchors_P], "amax"
    )
    return Aligned(anchors_P, boxes_P, measure_P / strongest_N[boxes_P] * hit_N[boxes_P])


def aligned_loss(
    maps: Maps, targets: Sequence[GroundTruth], decode: Decode, top: int = TOP_K
) -> Loss:
    """Return binary cross entropy of all scores and the loss of the chosen boxes, for a batch."""
    logits_BAKhw = maps[0]
    B, _, K = logits_BAKhw.shape[:3]
    boxes = BoxLoss(maps, decode)
    centres_M2 = (boxes.anchors_M4[:, :2] + boxes.anchors_M4[:, 2:]) / 2
    logits_BMK = logits_BAKhw.flatten(3).transpose(2, 3).reshape(B, -1, K)
    wanted_BMK = torch.zeros_like(logits_BMK)
    positives = 0
    for index, target in enumerate(targets):
        found = align(
            centres_M2,
            logits_BMK[index].detach().sigmoid(),
            boxes.predicted_BM4[index].detach(),
            target,
            top,
            CENTER_RADIUS * decode.stride,
        )
        labels_P = target.labels[found.boxes_P]
        targets_P = found.targets_P * target.shares[found.boxes_P]
        wanted_BMK[index, found.anchors_P, labels_P] = targets_P
        boxes.add(index, found.anchors_P, target.boxes_xyxy[found.boxes_P], targets_P)
        positives += len(found.anchors_P)
    divisor = per_process(wanted_BMK.sum())
    classes = F.binary_cross_entropy_with_logits(logits_BMK, wanted_BMK, reduction="sum")
    return Loss({"classes": classes / divisor, **boxes.over(divisor, BOX_WEIGHT)}, positives)


def training_loss(
    outputs: Sequence[Tensor], targets: Sequence[GroundTruth], decode: Decode, assign: Assign
) -> Loss:
    """Return the loss of a network's outputs: of one head, or of both heads in training."""
    first, *others = by_head([x.float() for x in outputs])
    if decode.nms:
        loss = aligned_loss if assign == "aligned" else detection_loss
        return loss(first, targets, decode)
    one = aligned_loss(first, targets, decode, top=1)
    terms = one.terms
    for maps in others:  # the one-to-many head, in training mode only
        many = aligned_loss(maps, targets, decode).terms
        terms = {name: value + many[name] for name, value in terms.items()}
    return Loss(terms, one.positives)
