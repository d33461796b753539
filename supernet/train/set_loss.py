"""Set prediction losses: each object is matched with one query, in every decoder layer.

DETR (Carion et al. 2020, Eqs. 1 and 2) has a softmax with a class for no object, SAM-DETR sigmoids
with focal loss. Matching is the Hungarian algorithm, by scipy.

Shape suffixes: S decoder layers, B batch, Q queries, K classes, N objects, P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..boxes import cxcywh_to_xyxy, giou_pairs, xyxy_to_cxcywh
from ..data.ground_truth import GroundTruth
from .distributed import per_process
from .uniform import FOCAL_ALPHA, FOCAL_GAMMA, focal_loss


@dataclass(frozen=True, kw_only=True, slots=True)
class SetWeights:
    """Weights of the terms of matching costs and losses."""

    classes: float
    l1: float = 5.0
    giou: float = 2.0
    class_cost: float
    focal: bool
    """Sigmoids with focal loss, instead of a softmax with a class for no object."""
    nothing: float = 0.1
    """Weight of queries without an object in a softmax's loss."""


DETR = SetWeights(classes=1.0, class_cost=1.0, focal=False)
SAM_DETR = SetWeights(classes=2.0, class_cost=2.0, focal=True)


@torch.no_grad()
def match_sets(
    logits_QK: Tensor, boxes_Q4: Tensor, wanted_N4: Tensor, labels_N: Tensor, weights: SetWeights
) -> tuple[Tensor, Tensor]:
    """Return the pairs (queries, objects) of least cost; boxes are cxcywh in shares.

    There are as many pairs as objects, or as queries where these are fewer.
    """
    logits = logits_QK.float()
    if weights.focal:
        p = logits.sigmoid()[:, labels_N]
        miss = (1 - FOCAL_ALPHA) * p**FOCAL_GAMMA * -(1 - p + 1e-8).log()
        hit = FOCAL_ALPHA * (1 - p) ** FOCAL_GAMMA * -(p + 1e-8).log()
        cost = weights.class_cost * (hit - miss)
    else:
        cost = -weights.class_cost * logits.softmax(-1)[:, labels_N]
    cost = cost + weights.l1 * torch.cdist(boxes_Q4.float(), wanted_N4, p=1)
    corners, wanted = cxcywh_to_xyxy(boxes_Q4.float()), cxcywh_to_xyxy(wanted_N4)
    cost = cost - weights.giou * giou_pairs(corners[:, None], wanted[None])
    from scipy.optimize import linear_sum_assignment  # slow to import

    # Where the network computes NaN its loss is not finite, which is handled there.
    queries, objects = linear_sum_assignment(cost.nan_to_num(1e6, 1e6, -1e6).cpu().numpy())
    pairs = torch.from_numpy(np.stack([queries, objects])).to(logits.device)
    return pairs[0], pairs[1]


def set_loss(
    logits_SBQK: Tensor,
    boxes_SBQ4: Tensor,
    targets: Sequence[GroundTruth],
    input_hw: tuple[int, int],
    weights: SetWeights,
) -> dict[str, Tensor]:
    """Return the terms `classes`, `l1` and `giou`, weighted, summed over layers.

    Targets are in pixels of the input, predicted boxes cxcywh in shares of it. Boxes are divided by
    the number of objects in the batch.
    """
    height, width = input_hw
    unit = torch.tensor([width, height] * 2, dtype=torch.float32, device=boxes_SBQ4.device)
    wanted = [xyxy_to_cxcywh(target.boxes_xyxy.to(unit) / unit) for target in targets]
    shown = sum(float(target.shares.sum()) for target in targets)
    objects = per_process(torch.tensor(shown, device=boxes_SBQ4.device))
    zero = logits_SBQK.new_zeros(())
    classes, l1, giou = zero, zero, zero
    for logits_BQK, boxes_BQ4 in zip(logits_SBQK.float(), boxes_SBQ4.float(), strict=True):
        labels, found, truth, shares, weighted = [], [], [], [], []
        for logits, boxes, wished, target in zip(
            logits_BQK, boxes_BQ4, wanted, targets, strict=True
        ):
            queries, rows = match_sets(logits, boxes, wished, target.labels, weights)
            label_Q = torch.full((len(logits),), -1, device=logits.device)
            label_Q[queries] = target.labels[rows]
            labels.append(label_Q)
            weight_P = target.shares[rows]
            shares.append(torch.ones_like(logits[:, 0]).index_put((queries,), weight_P))
            weighted.append(weight_P)
            found.append(boxes[queries])
            truth.append(wished[rows])
        label_BQ, share_BQ = torch.stack(labels), torch.stack(shares)
        classes = classes + class_loss(logits_BQK, label_BQ, share_BQ, objects, weights)
        weight_P = torch.cat(weighted)
        found_P4, truth_P4 = torch.cat(found), torch.cat(truth)
        l1 = l1 + (weight_P[:, None] * (found_P4 - truth_P4).abs()).sum() / objects
        overlap = giou_pairs(cxcywh_to_xyxy(found_P4), cxcywh_to_xyxy(truth_P4))
        giou = giou + (weight_P * (1 - overlap)).sum() / objects
    return {
        "classes": weights.classes * classes,
        "l1": weights.l1 * l1,
        "giou": weights.giou * giou,
    }


def class_loss(
    logits_BQK: Tensor,
    labels_BQ: Tensor,
    shares_BQ: Tensor,
    objects: Tensor,
    weights: SetWeights,
) -> Tensor:
    """Return the loss of the classes; a label of -1 is no object, `shares` weigh the queries."""
    K = logits_BQK.shape[-1]
    if weights.focal:
        one_hot = F.one_hot(labels_BQ.clamp_min(0), K).to(logits_BQK)
        found = one_hot * (labels_BQ >= 0)[..., None]
        return focal_loss(logits_BQK, found, shares_BQ[..., None]) / objects
    share = logits_BQK.new_ones(K)
    share[-1] = weights.nothing
    wanted = labels_BQ.where(labels_BQ >= 0, K - 1)
    loss_N = F.cross_entropy(logits_BQK.flatten(0, 1), wanted.flatten(), reduction="none")
    share_N = share[wanted.flatten()] * shares_BQ.flatten()
    return (share_N * loss_N).sum() / share_N.sum()
