"""Levers of the recipe that are tried against what it has: losses, overlaps, resizing, schedules.

What each of them gave is in results/recipe/log.md; `ablations.py --set recipe` tries them.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import supernet.train.uniform
from supernet.boxes import giou_pairs, iou_matrix, xyxy_to_cxcywh
from supernet.data.ground_truth import GroundTruth
from supernet.heatdetr.operators.decode import Decode
from supernet.letterbox import Image, resized
from supernet.train.box_loss import BoxLoss
from supernet.train.feed import Batch
from supernet.train.head_maps import Maps
from supernet.train.matching import IGNORED, match
from supernet.train.optimise import rate_factor
from supernet.train.recipes import TrainConfig
from supernet.train.samples import Samples
from supernet.train.uniform import Loss

DETECTION_LOSS = supernet.train.uniform.detection_loss
PLAIN_FIRST = 4
"""Epochs without strong augmentation at the start (DEIMv2)."""


def quality_loss(
    maps: Maps,
    targets: Sequence[GroundTruth],
    decode: Decode,
    matchability: float | None = None,
) -> Loss:
    """Match as `detection_loss` does, but with the predicted box's IoU as target of positives.

    Zhang et al. 2021, VarifocalNet.
    """
    logits_BAKhw = maps[0]
    B, _, K = logits_BAKhw.shape[:3]
    boxes = BoxLoss(maps, decode)
    logits_BMK = logits_BAKhw.flatten(3).transpose(2, 3).reshape(B, -1, K)
    classes, positives = logits_BMK.new_zeros(()), 0
    for index, (logits_MK, target) in enumerate(zip(logits_BMK, targets, strict=True)):
        predicted_M4 = boxes.predicted_BM4[index].detach()
        found = match(boxes.anchors_M4, predicted_M4, target.boxes_xyxy, target.labels)
        hit_NM = iou_matrix(target.boxes_xyxy, predicted_M4)
        wanted_M = hit_NM.new_zeros(len(logits_MK)).scatter_reduce(
            0, found.anchors_P, hit_NM[found.boxes_P, found.anchors_P], "amax"
        )
        valid_M = found.targets_M != IGNORED
        positive_MK = F.one_hot(found.targets_M.clamp_min(0), K) * (found.targets_M >= 0).unsqueeze(
            1
        )
        wanted_MK = positive_MK * wanted_M[:, None]
        scores_MK = logits_MK.detach().sigmoid()
        if matchability is None:
            weight_MK = torch.where(positive_MK > 0, wanted_MK, 0.75 * scores_MK**2)
        else:
            wanted_MK = wanted_MK**matchability
            weight_MK = 0.5 * torch.where(positive_MK > 0, 1.0, scores_MK**matchability)
        cross_MK = F.binary_cross_entropy_with_logits(logits_MK, wanted_MK, reduction="none")
        classes = classes + (weight_MK * cross_MK)[valid_M].sum()
        wanted_P4 = target.boxes_xyxy[found.boxes_P]
        boxes.add(index, found.anchors_P, wanted_P4, torch.ones(len(wanted_P4)))
        positives += len(found.anchors_P)
    divisor = torch.tensor(max(1.0, positives))
    return Loss({"classes": classes / divisor, **boxes.over(divisor)}, positives)


def matchability_loss(maps: Maps, targets: Sequence[GroundTruth], decode: Decode) -> Loss:
    """Match as `detection_loss` does, with the matchability-aware loss of the classes.

    DEIM (Huang et al. 2025): positives learn IoU^1.5, negatives weigh score^1.5.
    """
    return quality_loss(maps, targets, decode, matchability=1.5)


def boxes_weigh(weight: float, maps: Maps, targets: Sequence[GroundTruth], decode: Decode) -> Loss:
    """Return the loss with another weight of the boxes than 1."""
    loss = DETECTION_LOSS(maps, targets, decode)
    boxes = {name: weight * term for name, term in loss.terms.items() if name != "classes"}
    return replace(loss, terms={**loss.terms, **boxes})


def bilinear(image: Image, hw: tuple[int, int]) -> Image:
    """Resize by bilinear sampling without averaging, as training did before 28 November 2026."""
    return cv2.resize(image, (hw[1], hw[0]), interpolation=cv2.INTER_LINEAR)


def _centres_and_sides(boxes_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    """Return centres and sides, [..., 2] each."""
    centre, sides = xyxy_to_cxcywh(boxes_xyxy).split(2, -1)
    return centre, sides.clamp_min(1e-3)


def ciou(predicted_xyxy: Tensor, wanted_xyxy: Tensor) -> Tensor:
    """Return the complete IoU of pairs (Zheng et al. 2020, Distance-IoU Loss), [...]."""
    low = torch.maximum(predicted_xyxy[..., :2], wanted_xyxy[..., :2])
    high = torch.minimum(predicted_xyxy[..., 2:], wanted_xyxy[..., 2:])
    overlap = (high - low).clamp_min(0).prod(-1)
    (centre, sides), (middle, wanted) = map(_centres_and_sides, (predicted_xyxy, wanted_xyxy))
    iou = overlap / (sides.prod(-1) + wanted.prod(-1) - overlap)
    hull = torch.maximum(predicted_xyxy[..., 2:], wanted_xyxy[..., 2:]) - torch.minimum(
        predicted_xyxy[..., :2], wanted_xyxy[..., :2]
    )
    apart = ((centre - middle) ** 2).sum(-1) / (hull**2).sum(-1).clamp_min(1e-9)
    turn = torch.atan(wanted[..., 0] / wanted[..., 1]) - torch.atan(sides[..., 0] / sides[..., 1])
    shape = 4 / math.pi**2 * turn**2
    with torch.no_grad():
        weight = shape / (1 - iou + shape).clamp_min(1e-9)
    return iou - apart - weight * shape


def giou_and_distances(predicted_xyxy: Tensor, wanted_xyxy: Tensor) -> Tensor:
    """Return the GIoU of pairs less half their distance, in units of the wanted box, [...].

    The distance is that of the centres by sides, and of the sides by their logarithm.
    """
    (centre, sides), (middle, wanted) = map(_centres_and_sides, (predicted_xyxy, wanted_xyxy))
    shift, growth = (centre - middle) / wanted, torch.log(sides / wanted)
    distance = sum(
        F.smooth_l1_loss(x, torch.zeros_like(x), beta=0.1, reduction="none").sum(-1)
        for x in (shift, growth)
    )
    return giou_pairs(predicted_xyxy, wanted_xyxy) - 0.5 * distance


def above_half(step: float, steps: int, config: TrainConfig) -> float:
    """Return the learning rate, relative to its peak: a cosine that ends at a half (DEIMv2)."""
    factor = rate_factor(step, steps, replace(config, schedule="cosine"))
    return factor if step < config.warmup_steps else 0.5 + 0.5 * factor


class PlainFirst(Samples):
    """The first epochs show one image at a time, without pasted objects."""

    def sample(self, epoch: int, index: int, again: int = 0) -> tuple[Tensor, GroundTruth]:
        """Return one augmented image and its objects."""
        config = self.config
        if epoch < PLAIN_FIRST:
            self.config = replace(config, augment=replace(config.augment, mosaic=0.0, pasted=0.0))
        try:
            return super().sample(epoch, index, again)
        finally:
            self.config = config


def as_they_are(batch: Batch, rng: np.random.Generator) -> Batch:
    """Show the batch as it is."""
    return batch


def of_several_sizes(batch: Batch, rng: np.random.Generator) -> Batch:
    """Show the batch at a side of 0.8, 1 or 1.2 times, in multiples of 64 pixels."""
    images, targets = batch
    scale = rng.choice([0.8, 1.0, 1.2])
    height, width = (64 * round(side * scale / 64) for side in images.shape[1:3])
    shown = np.stack([resized(image.numpy(), (height, width)) for image in images])
    factor = torch.tensor([width / images.shape[2], height / images.shape[1]] * 2)
    boxes = [replace(target, boxes_xyxy=target.boxes_xyxy * factor) for target in targets]
    return torch.from_numpy(shown), boxes
