"""How far a network's detections can be trusted as labels, by class and score.

Detections on labelled images are counted as right (IoU of at least 0.5 with an object of their
class that no better one has found) or wrong. The share that is right in a bin of scores, of a class
that had few of them drawn towards that of all classes, is how much such a detection counts as a
label. Counts fade, since the network changes.

Suffixes: K classes, S bins of scores, N detections.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..boxes import Detections, iou_matrix
from ..data.greedy_match import greedy_match
from ..data.ground_truth import GroundTruth
from .distributed import Group

BINS = 20
FADE = 0.97
"""What is left of the counts after each further batch."""
PRIOR = 4.0
"""Detections that the estimate from elsewhere counts as."""
LEAST = 0.3
"""Detections that are right less often are no labels."""
LEAST_SCORE = 0.1
"""Detections of lower scores are not looked at."""
IOU = 0.5
KEYS = ("right_KS", "wrong_KS", "objects")


class Trust:
    """Counts of right and wrong detections; one per run, equal in all its processes."""

    def __init__(self, num_classes: int) -> None:
        """Begin with none."""
        self.right_KS = torch.zeros(num_classes, BINS)
        self.wrong_KS = torch.zeros(num_classes, BINS)
        self.objects = torch.zeros(1)

    def state(self) -> dict[str, Tensor]:
        """Return the counts."""
        return {key: getattr(self, key) for key in KEYS}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from counts; start anew without any."""
        for key in KEYS:
            if key in state:
                setattr(self, key, state[key])

    def count(
        self, found: Sequence[Detections], truth: Sequence[GroundTruth], group: Group
    ) -> None:
        """Count the detections of this process's labelled images, and all processes add theirs."""
        new = torch.zeros(2, *self.right_KS.shape)
        objects = torch.zeros(1)
        for detections, target in zip(found, truth, strict=True):
            detections = of_score(detections)
            right_N = matched(detections, target).cpu()
            bins_N, labels_N = _bins(detections.scores.cpu()), detections.labels.cpu()
            place = ((~right_N).long(), labels_N, bins_N)
            new.index_put_(place, torch.ones(len(right_N)), accumulate=True)
            objects += len(target.labels)
        right, wrong = group.sum(new)
        self.right_KS = FADE * self.right_KS + right
        self.wrong_KS = FADE * self.wrong_KS + wrong
        self.objects = FADE * self.objects + group.sum(objects)

    def shares(self) -> Tensor:
        """Return how often a detection is right, by class and bin of scores [K, S]."""
        right_S, wrong_S = self.right_KS.sum(0), self.wrong_KS.sum(0)
        share = torch.zeros(())
        shares = []
        for right, wrong in zip(right_S, wrong_S, strict=True):
            share = (right + PRIOR * share) / (right + wrong + PRIOR)
            shares.append(share)
        all_S = torch.stack(shares)
        return (self.right_KS + PRIOR * all_S) / (self.right_KS + self.wrong_KS + PRIOR)

    def found(self) -> float:
        """Return the share of the labelled objects that trusted detections find."""
        trusted = self.right_KS[self.shares() >= LEAST].sum()
        return float(trusted / self.objects.clamp_min(1))

    def labels(self, found: Detections) -> GroundTruth:
        """Return the trusted detections of an image as its objects, with their weights."""
        found = of_score(found)
        shares_KS = self.shares().to(found.scores.device)
        weights_N = shares_KS[found.labels, _bins(found.scores)]
        kept_N = weights_N >= LEAST
        return GroundTruth(found.boxes_xyxy[kept_N], found.labels[kept_N], weights_N[kept_N])


def of_score(found: Detections) -> Detections:
    """Return the detections that are looked at."""
    kept_N = found.scores >= LEAST_SCORE
    return Detections(found.boxes_xyxy[kept_N], found.scores[kept_N], found.labels[kept_N])


def matched(found: Detections, target: GroundTruth) -> Tensor:
    """Return which detections are right [N]; they are in the order of their scores."""
    iou_NM = iou_matrix(found.boxes_xyxy, target.boxes_xyxy)
    iou_NM = torch.where(found.labels[:, None] == target.labels, iou_NM, 0.0)
    return torch.from_numpy(greedy_match(iou_NM.cpu().numpy(), IOU) >= 0)


def _bins(scores_N: Tensor) -> Tensor:
    return (scores_N * BINS).long().clamp(0, BINS - 1)
