"""Checks whether detections are a result that greedy NMS may give on known candidates.

Where candidates have nearly equal scores, a difference far below the tolerances changes which of
two overlapping boxes NMS keeps, and every later decision with it: two correct results may share
few boxes. Both are correct if each box is a candidate, none overlaps another of its class too
much, and each candidate that is missing is suppressed by a kept box that scores as high. Where
boxes vote, a detection is compared with what its candidate becomes by it.
"""

import numpy as np
import torch
from torch import Tensor

from supernet.boxes import KEEP, Detections, iou_matrix
from supernet.heatdetr.operators.decode import NMS_IOU, PRE_NMS, SCORE_THRESHOLD, Decode
from supernet.heatdetr.operators.voting import LEAST, VOTERS, voted, votes

NEAR_IOU = 1e-3
"""Of two boxes whose IoU is this close to NMS's threshold, one or both may be kept."""


def violations(
    decode: Decode,
    scores_AKL: Tensor,
    boxes_M4: Tensor,
    found: tuple[Tensor, Tensor, Tensor],
    *,
    least_score: float,
    score_tolerance: float,
    box_tolerance_px: float,
) -> int:
    """Count what greedy NMS on these candidates cannot give.

    Args:
        decode: Whether boxes vote, and how scores are calibrated.
        scores_AKL: Scores of all candidates: anchors, classes, positions; not calibrated.
        boxes_M4: Their boxes xyxy in pixels, clipped to the image, M = A x L.
        found: Boxes [n, 4], scores [n] and labels [n] of the result.
        least_score: Only candidates and detections of at least this score are checked.
        score_tolerance: Difference of scores that counts as equal.
        box_tolerance_px: Difference of coordinates that counts as equal.
    """
    boxes, scores, labels = found
    calibration = decode.calibration
    voted_KM4, slack_KM = _voted(decode, scores_AKL, boxes_M4, score_tolerance)

    def final(scores: Tensor, label: int) -> Tensor:
        """Return scores of a class as the result has them."""
        if calibration is None:
            return scores
        own = np.full(scores.shape, label)
        return torch.from_numpy(calibration(scores.double().numpy(), own)).to(scores)

    def at_head(scores: Tensor, labels: Tensor) -> Tensor:
        """Return scores of the result as the head gave them."""
        if calibration is None:
            return scores
        return torch.from_numpy(calibration.inverse(scores.double().numpy(), labels.numpy()))

    flat = scores_AKL.flatten()
    last_at_head = max(SCORE_THRESHOLD, float(flat.topk(min(PRE_NMS, flat.numel())).values[-1]))
    full_at_head = float(at_head(scores, labels).min()) if len(scores) >= KEEP else 0.0
    wrong = num_covered = num_due = 0
    for label in range(scores_AKL.shape[1]):
        candidates = final(scores_AKL[:, label].flatten(), label)
        last, full = final(torch.tensor([last_at_head, full_at_head]), label).tolist()
        num_due += int((candidates >= max(least_score, last)).sum())
        mine = labels == label
        kept, kept_scores = boxes[mine], scores[mine]
        wrong += _not_candidates(
            kept[kept_scores >= least_score],
            kept_scores[kept_scores >= least_score],
            voted_KM4[label],
            torch.where(candidates >= last - score_tolerance, candidates, -1.0),
            score_tolerance,
            box_tolerance_px + slack_KM[label],
        )
        if decode.voting and len(kept):
            differ = (kept_scores[:, None] - candidates[None]).abs() > score_tolerance
            far = (kept[:, None] - voted_KM4[label][None]).abs().amax(-1)
            kept = boxes_M4[torch.where(differ, torch.inf, far).argmin(1)]
        if len(kept) > 1:
            overlap = iou_matrix(kept, kept).triu(diagonal=1)
            wrong += int((overlap > NMS_IOU + NEAR_IOU).sum())
        eligible = candidates >= max(least_score, last - score_tolerance)
        if not bool(eligible.any()):
            continue
        near = (boxes_M4[eligible][:, None] - kept[None]).abs().amax(-1) <= box_tolerance_px
        covers = near | (iou_matrix(boxes_M4[eligible], kept) >= NMS_IOU - NEAR_IOU)
        as_good = kept_scores[None] >= candidates[eligible][:, None] - score_tolerance
        covered = (covers & as_good).any(1)
        due = candidates[eligible] >= max(last, full) + score_tolerance
        wrong += int((due & ~covered).sum())
        num_covered += int(covered.sum())
    if len(scores) < KEEP:
        # Of more equal candidates than take part any may: so many at least are accounted for.
        wrong = max(wrong, min(PRE_NMS, num_due) - num_covered)
    return wrong


def _voted(
    decode: Decode, scores_AKL: Tensor, boxes_M4: Tensor, score_tolerance: float
) -> tuple[Tensor, Tensor]:
    """Return each candidate's box after voting, by class, [K, M, 4], and its uncertainty [K, M].

    Of candidates that score nearly as the last voter does, others may vote.
    """
    _, K, L = scores_AKL.shape
    voted_KM4, slack_KM = boxes_M4.expand(K, -1, -1), boxes_M4.new_zeros(K, len(boxes_M4))
    if not decode.voting:
        return voted_KM4, slack_KM
    voted_KM4 = voted_KM4.clone()
    # More than take part: of nearly equal ones any may.
    scores_N, index = scores_AKL.flatten().topk(min(4 * decode.most, scores_AKL.numel()))
    labels = index // L % K
    row = labels, index // (K * L) * L + index % L
    found = Detections(boxes_M4[row[1]], scores_N, labels)
    boxes_N4, apart_N4, every = found.boxes_xyxy, decode.apart(found), torch.arange(len(index))
    scores_N = scores_N * (scores_N > SCORE_THRESHOLD)  # the others do not vote
    voted_N4 = voted(boxes_N4, apart_N4, scores_N, every)
    voted_KM4[row] = voted_N4
    if len(scores_N) > VOTERS:
        tied = (scores_N - scores_N[VOTERS - 1]).abs() <= score_tolerance
        weights_NT = votes(apart_N4, apart_N4[tied], scores_N[tied])
        pull_NT = (boxes_N4[tied] - voted_N4[:, None]).abs().amax(-1)
        slack_KM[row] = (weights_NT * pull_NT).sum(1) / scores_N.clamp_min(LEAST) ** 2
    return voted_KM4, slack_KM


def _not_candidates(
    boxes: Tensor,
    scores: Tensor,
    boxes_M4: Tensor,
    candidates_M: Tensor,
    score_tolerance: float,
    box_tolerance_M: Tensor,
) -> int:
    """Count detections that are no candidate of their class."""
    if not len(boxes):
        return 0
    same_box = (boxes[:, None] - boxes_M4[None]).abs().amax(-1) <= box_tolerance_M
    same_score = (scores[:, None] - candidates_M[None]).abs() <= score_tolerance
    return int((~(same_box & same_score).any(1)).sum())
