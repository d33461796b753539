"""Levers of the recipe that are tasks: a teacher of the run's own, boxes as masks, late claims.

What each of them gave is in results/recipe/log.md; `ablations.py --set recipe` tries them.

Shape suffixes: B batch, K classes, M anchors of one image, N boxes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import supernet.train.uniform
from supernet.boxes import iou_matrix, xyxy_to_cxcywh
from supernet.data.detection_set import DetectionSet
from supernet.data.ground_truth import GroundTruth
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.train.distill import distillation
from supernet.train.distributed import Group
from supernet.train.matching import (
    IGNORE_ANCHOR_IOU,
    IGNORE_PREDICTION_IOU,
    IGNORED,
    NEGATIVE,
    TOPK,
    Match,
    match,
)
from supernet.train.optimise import Averaged
from supernet.train.recipes import TrainConfig
from supernet.train.task import Batch, DetectionTask
from supernet.train.uniform import focal_loss

FROM = 0.3
"""Share of the epochs after which the averaged weights teach."""
MASKED = {"s2_global": 8, "s3_global": 16}
"""Units whose maps are to show the boxes, and their strides in pixels."""


class SelfTaught(DetectionTask):
    """The network learns the maps of its own averaged weights too, as those of a teacher.

    From `FROM` of the epochs on; their weight grows to 1 at the end.
    """

    def __init__(self, network: Detector, data: DetectionSet) -> None:
        """Train `network` on `data`."""
        super().__init__(network, data)
        self._average: Averaged | None = None
        self._weight = 0.0
        self._theirs: Sequence[Tensor] = ()

    def begin(self, average: Averaged, group: Group) -> None:
        """Take the averaged weights of the run."""
        self._average = average

    def start_epoch(self, epoch: float, epochs: int) -> None:
        """Weigh what they say."""
        self._weight = max(0.0, (epoch / epochs - FROM) / (1 - FROM))

    def prepare(self, batch: Batch, config: TrainConfig) -> Batch:
        """Keep the maps of the averaged weights for the loss."""
        batch = super().prepare(batch, config)
        if self._weight:
            assert self._average is not None
            self._theirs = self._average.outputs(self.network, batch[0], config.precision)[:2]
        return batch

    def loss(
        self, outputs: Sequence[Tensor], targets: Any, config: TrainConfig
    ) -> dict[str, Tensor]:
        """Return the terms of the labels and of the averaged weights."""
        terms = super().loss(outputs, targets, config)
        if self._weight:
            more = distillation(outputs[:2], self._theirs, self.network.decode)
            terms |= {name: self._weight * value for name, value in more.items()}
        return terms


class LateOverlap(DetectionTask):
    """In the second half of the epochs objects claim predictions by IoU, not by distance."""

    def start_epoch(self, epoch: float, epochs: int) -> None:
        """Change the rule of matching."""
        late = epoch >= 0.5 * epochs
        supernet.train.uniform.match = match_by_overlap if late else match


@torch.no_grad()
def match_by_overlap(
    anchors_xyxy: Tensor, predicted_xyxy: Tensor, boxes_xyxy: Tensor, labels_N: Tensor
) -> Match:
    """Match as `match` does, where a box claims the predictions that overlap it most.

    An anchor that two boxes claim goes to the one that its prediction overlaps more.
    """
    near_M = torch.full((len(anchors_xyxy),), NEGATIVE)
    if not len(boxes_xyxy):
        empty = labels_N.new_zeros(0)
        return Match(empty, empty, near_M)
    iou_NM = iou_matrix(boxes_xyxy, predicted_xyxy)
    far_NM = torch.cdist(xyxy_to_cxcywh(boxes_xyxy), xyxy_to_cxcywh(anchors_xyxy), p=1)
    claims = [iou_NM.topk(TOPK).indices, far_NM.topk(TOPK, largest=False).indices]
    anchor = torch.cat(claims, 1).flatten()
    box = torch.arange(len(boxes_xyxy)).repeat_interleave(2 * TOPK)
    targets_M = near_M.masked_fill(iou_NM.amax(0) > IGNORE_PREDICTION_IOU, IGNORED)
    kept = iou_matrix(anchors_xyxy, boxes_xyxy)[anchor, box] >= IGNORE_ANCHOR_IOU
    targets_M[anchor[~kept]] = IGNORED
    anchor, box = anchor[kept], box[kept]
    worth = iou_NM[box, anchor]
    most_M = torch.zeros(len(anchors_xyxy)).scatter_reduce(0, anchor, worth, "amax")
    wins = worth == most_M[anchor]
    targets_M[anchor[wins]] = labels_N[box[wins]]
    return Match(anchor, box, targets_M)


class WithMasks(Detector):
    """Two inner maps predict, in training, the class of the boxes that cover each cell."""

    def __init__(self, architecture: Architecture) -> None:
        """Add a convolution for each of them."""
        super().__init__(architecture)
        self.shown: dict[int, Tensor] = {}
        self.masks = nn.ModuleDict()
        for (place, stride), width in zip(MASKED.items(), architecture.widths[1:], strict=False):
            conv = nn.Conv2d(width, architecture.num_classes, 1)
            nn.init.constant_(conv.bias, -4.0)  # type: ignore[arg-type]  # as a rare class
            self.masks[place] = conv
            self.units[place].register_forward_hook(self._keep(place, stride))

    def _keep(self, place: str, stride: int) -> Any:
        def hook(unit: nn.Module, inputs: Any, map_BChw: Tensor) -> None:
            if self.training:
                self.shown[stride] = self.masks[place](map_BChw)

        return hook


class Masked(DetectionTask):
    """Detection, and the masks of `WithMasks`."""

    def loss(
        self, outputs: Sequence[Tensor], targets: Any, config: TrainConfig
    ) -> dict[str, Tensor]:
        """Return the terms of the detections and of the masks, by stride."""
        terms = super().loss(outputs, targets, config)
        assert isinstance(self.network, WithMasks)
        for stride, logits_BKhw in self.network.shown.items():
            wanted_BKhw = torch.stack([_mask(t, logits_BKhw[0], stride) for t in targets])
            covered = wanted_BKhw.sum().clamp_min(1.0)
            terms[f"masks_{stride}"] = focal_loss(logits_BKhw.float(), wanted_BKhw) / covered
        self.network.shown = {}
        return terms


def _mask(target: GroundTruth, like_Khw: Tensor, stride: int) -> Tensor:
    """Return 1 where a box of the class covers the middle of a cell, at least in one cell."""
    mask_Khw = torch.zeros_like(like_Khw, dtype=torch.float32)
    for (x0, y0, x1, y1), label in zip(
        (target.boxes_xyxy / stride).tolist(), target.labels.tolist(), strict=True
    ):
        left, top = min(round(x0), int((x0 + x1) / 2)), min(round(y0), int((y0 + y1) / 2))
        mask_Khw[label, top : max(round(y1), top + 1), left : max(round(x1), left + 1)] = 1.0
    return mask_Khw
