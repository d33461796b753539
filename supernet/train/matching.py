"""Uniform matching (YOLOF): every box claims the k nearest anchors and k nearest predictions.

Shape suffixes: M anchors of one image, N boxes, P surviving pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..boxes import iou_matrix, xyxy_to_cxcywh
from ..errors import UserError

TOPK = 4
IGNORE_PREDICTION_IOU = 0.7
IGNORE_ANCHOR_IOU = 0.15

NEGATIVE = -1
IGNORED = -2


@dataclass(frozen=True, slots=True)
class Match:
    """The assignment of one image."""

    anchors_P: Tensor
    """Anchor index of each positive pair; duplicates are kept."""
    boxes_P: Tensor
    """Box index of each positive pair."""
    targets_M: Tensor
    """Class index of each anchor, or NEGATIVE, or IGNORED."""


@torch.no_grad()
def match(
    anchors_xyxy: Tensor,
    predicted_xyxy: Tensor,
    boxes_xyxy: Tensor,
    labels_N: Tensor,
    k: int = TOPK,
) -> Match:
    """Assign anchors to boxes (spec section 6); predictions take part without gradient."""
    M, N = len(anchors_xyxy), len(boxes_xyxy)
    if k > M:
        raise UserError(f"matching needs k <= anchors, got k={k} and {M} anchors: larger input")
    targets = torch.full((M,), NEGATIVE, dtype=torch.int64, device=anchors_xyxy.device)
    if N == 0:
        empty = targets.new_zeros(0)
        return Match(empty, empty, targets)
    boxes_cxcywh = xyxy_to_cxcywh(boxes_xyxy)
    pairs_anchor, pairs_cost = [], []
    for candidates in (predicted_xyxy, anchors_xyxy):
        cost_NM = torch.cdist(boxes_cxcywh, xyxy_to_cxcywh(candidates), p=1)
        cost_Nk, index_Nk = cost_NM.topk(k, largest=False)
        pairs_anchor.append(index_Nk)
        pairs_cost.append(cost_Nk)
    anchor = torch.cat(pairs_anchor, 1).flatten()
    cost = torch.cat(pairs_cost, 1).flatten()
    box = torch.arange(N, device=anchor.device).repeat_interleave(2 * k)

    best_iou_M = iou_matrix(predicted_xyxy, boxes_xyxy).amax(1)
    targets[best_iou_M > IGNORE_PREDICTION_IOU] = IGNORED
    near = iou_matrix(anchors_xyxy, boxes_xyxy)[anchor, box] >= IGNORE_ANCHOR_IOU
    targets[anchor[~near]] = IGNORED
    anchor, box, cost = anchor[near], box[near], cost[near]
    cheapest_M = torch.full((M,), torch.inf, device=cost.device).scatter_reduce(
        0, anchor, cost, "amin"
    )
    wins = cost == cheapest_M[anchor]
    targets[anchor[wins]] = labels_N[box[wins]]
    return Match(anchor, box, targets)
