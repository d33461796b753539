"""A lever of the recipe: the sides of a box are means of distributions, which learn a loss too.

Li et al. 2020, Generalized Focal Loss, equations 3 to 6; there the distances are of a point, here
of an anchor's centre and in units of the anchor's side, so that anchors begin as boxes.

Shape suffixes: B batch, A anchors per cell, N bins, M anchors of one image, P positive pairs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supernet.boxes import xyxy_to_cxcywh
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.operators.head import Head
from supernet.train.matching import match
from supernet.train.recipes import TrainConfig
from supernet.train.task import DetectionTask

BINS, STEP, FIRST = 16, 0.25, -0.5
"""Distances of the bins from an anchor's centre, in sides of the anchor: -0.5, -0.25 .. 3.25."""
WEIGHT = 0.2
"""Of the distributions' loss, that of the boxes being 1: 1.5 to 7.5 in YOLOv8."""
STEEP = 8.0
"""How fast the first distributions fall from half a side, per side."""


class Distributions(nn.Module):
    """The head's box convolution: a distribution of each side's distance, and the deltas of it."""

    def __init__(self, d: int, num_anchors: int) -> None:
        """Begin with boxes that are the anchors."""
        super().__init__()
        self.num_anchors = num_anchors
        self.conv = nn.Conv2d(d, num_anchors * 4 * BINS, 3, padding=1)
        self.bins = FIRST + STEP * torch.arange(BINS, dtype=torch.float32)
        nn.init.normal_(self.conv.weight, std=0.01)
        assert self.conv.bias is not None
        with torch.no_grad():
            self.conv.bias.copy_((-STEEP * (self.bins - 0.5).abs()).repeat(num_anchors * 4))
        self.shown: Tensor | None = None
        """Of the last images, [B, A, 4, N, h, w], in training."""

    def forward(self, t_reg: Tensor) -> Tensor:
        """Return deltas, [B, A * 4, h, w]."""
        B, _, h, w = t_reg.shape
        logits_BA4Nhw = self.conv(t_reg).view(B, self.num_anchors, 4, BINS, h, w).float()
        self.shown = logits_BA4Nhw if self.training else None
        chances = logits_BA4Nhw.softmax(3)
        mean_BA4hw = (chances * self.bins.to(chances)[:, None, None]).sum(3)
        left_top, right_bottom = mean_BA4hw[:, :, :2], mean_BA4hw[:, :, 2:]
        growth = (left_top + right_bottom).clamp_min(1e-3).log()
        return torch.cat([(right_bottom - left_top) / 2, growth], 2).flatten(1, 2)


class WithDistributions(Detector):
    """A network whose head predicts distributions."""

    def __init__(self, architecture: Architecture) -> None:
        """Replace the box convolution."""
        super().__init__(architecture)
        head = self.units["head"]
        assert isinstance(head, Head)
        head.box = Distributions(head.box.in_channels, head.num_anchors)  # type: ignore[assignment]


class WithDistributionsBeside(Detector):
    """A network whose task maps also predict distributions, in training only."""

    def __init__(self, architecture: Architecture) -> None:
        """Add a convolution beside the head's."""
        super().__init__(architecture)
        head = self.units["head"]
        assert isinstance(head, Head)
        self.sides = Distributions(head.box.in_channels, head.num_anchors)
        head.register_forward_hook(self._predict)

    def _predict(self, head: nn.Module, inputs: tuple[Tensor, Tensor], outputs: Any) -> None:
        if self.training:
            self.sides(inputs[1])


class Distributed(DetectionTask):
    """Detection, and the distributions of `WithDistributions` or `WithDistributionsBeside`."""

    def loss(
        self, outputs: Sequence[Tensor], targets: Any, config: TrainConfig
    ) -> dict[str, Tensor]:
        """Return the terms of the detections and of the distributions."""
        terms = super().loss(outputs, targets, config)
        beside = isinstance(self.network, WithDistributionsBeside)
        box = self.network.sides if beside else self.network.units["head"].box
        assert isinstance(box, Distributions) and box.shown is not None
        shown, box.shown = box.shown, None
        (h, w), decode = shown.shape[-2:], self.network.decode
        anchors_M4 = decode.anchors_xyxy(h, w)
        predicted_BM4 = decode.boxes(outputs[1]).detach()
        logits_BM4N = shown.permute(0, 1, 4, 5, 2, 3).flatten(1, 3)
        value, positives = logits_BM4N.sum() * 0.0, 0
        for logits_M4N, predicted_M4, target in zip(
            logits_BM4N, predicted_BM4, targets, strict=True
        ):
            found = match(anchors_M4, predicted_M4, target.boxes_xyxy, target.labels)
            wanted_P4 = _distances(anchors_M4[found.anchors_P], target.boxes_xyxy[found.boxes_P])
            value = value + _distribution_loss(logits_M4N[found.anchors_P], wanted_P4)
            positives += len(found.anchors_P)
        return terms | {"distributions": WEIGHT * value / max(1, positives)}


def _distances(anchors_P4: Tensor, boxes_P4: Tensor) -> Tensor:
    """Return left, top, right, bottom of boxes from anchors' centres, in sides, [P, 4]."""
    centre_P2, side_P2 = xyxy_to_cxcywh(anchors_P4).split(2, -1)
    return torch.cat(
        [(centre_P2 - boxes_P4[:, :2]) / side_P2, (boxes_P4[:, 2:] - centre_P2) / side_P2], 1
    )


def _distribution_loss(logits_P4N: Tensor, distances_P4: Tensor) -> Tensor:
    """Return the sum over the pairs of the mean over the sides: both bins that enclose a distance.

    Equation 6; distances beyond the bins are taken as the outermost.
    """
    place_P4 = ((distances_P4 - FIRST) / STEP).clamp(0.0, BINS - 1)
    low_P4 = place_P4.floor().clamp_max(BINS - 2)
    log_P4N = F.log_softmax(logits_P4N, -1)
    pairs = torch.stack([low_P4, low_P4 + 1], -1).long()
    weights = torch.stack([1 - (place_P4 - low_P4), place_P4 - low_P4], -1)
    return -(log_P4N.gather(-1, pairs) * weights).sum(-1).mean(-1).sum()
