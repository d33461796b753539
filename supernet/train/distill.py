"""Dense distillation between HeatDETRs on one grid: anchor by anchor, one learns the other's maps.

Classes learn the teacher's scores p by binary cross entropy, weighted by how far they are off,
`|s - p|^2` (the quality focal loss of Li et al. 2020, Generalized Focal Loss, Eq. 3, whose quality
is the teacher's score). Boxes learn the teacher's by GIoU where it is sure, weighted by its score.
Both are divided by the sum of the scores of the anchors where it is sure, and added to the loss of
the labels.

Shape suffixes: B batch, A anchors per cell, K classes, M anchors of one image.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..boxes import giou_pairs
from ..data.detection_set import DetectionSet
from ..errors import UserError
from ..heatdetr.architecture import Architecture
from ..heatdetr.detector import Detector
from ..heatdetr.operators.decode import Decode
from .head_maps import Maps, by_head
from .recipes import TrainConfig
from .task import DetectionTask

SURE = 0.2
"""Score from which on the teacher's boxes are learnt."""
FOCUS = 2.0
"""Exponent of the distance from the teacher's score."""


def why_not_dense(student: Architecture, teacher: Architecture) -> str | None:
    """Return what keeps a network from learning another's maps; None where nothing does.

    Sizes of images do not count: a teacher is shown the student's.
    """
    for what, own, other in (
        ("output stride", student.output_stride, teacher.output_stride),
        ("anchor sizes", student.anchor_sizes, teacher.anchor_sizes),
        ("anchor offset", student.anchor_offset, teacher.anchor_offset),
        ("number of classes", student.num_classes, teacher.num_classes),
    ):
        if own != other:
            return f"its {what} is {other}, the network's {own}"
    if student.head != "one-to-one" and teacher.head == "one-to-one":
        return "its head predicts each object once, the network's does not"
    return None


class Taught(nn.Module):
    """Runs a student, and its teacher without gradients; the student's weights are trained."""

    def __init__(self, student: Detector, teacher: Detector, order: Sequence[int]) -> None:
        """Freeze the teacher; `order` gives its class for each of the student's."""
        super().__init__()
        self.student = student
        self.teacher = teacher.eval().requires_grad_(False)
        self.order = list(order)

    def forward(self, image_BHW3: Tensor) -> tuple[Tensor, ...]:
        """Return the student's maps, then the logits and deltas of the teacher."""
        with torch.no_grad():
            logits, deltas = self.teacher(image_BHW3)[:2]
        return (*self.student(image_BHW3), logits[:, :, self.order], deltas)


def class_order(theirs: Sequence[str], own: Sequence[str]) -> list[int] | None:
    """Return the teacher's number of each class; None where they do not match one to one by name.

    Classes that share a name match only where all are in the same order.
    """
    if tuple(theirs) == tuple(own):
        return list(range(len(own)))
    if sorted(theirs) != sorted(own) or len(set(own)) < len(own):
        return None
    return [list(theirs).index(name) for name in own]


class DistilledTask(DetectionTask):
    """Detection by a HeatDETR that learns from labels and from another HeatDETR."""

    def __init__(
        self,
        network: Detector,
        data: DetectionSet,
        teacher: Detector,
        names: Sequence[str],
    ) -> None:
        """Train `network` on `data`; the teacher's classes are `names`.

        Raises `UserError` where their maps are not on one grid, or their classes not the same.
        """
        super().__init__(network, data)
        why = why_not_dense(network.architecture, teacher.architecture)
        order = class_order(names, data.names)
        if why is not None or order is None:
            raise UserError(f"the teacher's maps are not the network's: {why or 'other classes'}")
        self.model: Any = Taught(network, teacher, order)
        both = network.many is not None and teacher.architecture.head != "one-to-one"
        self._taught = 1 if both else 0
        """The student's head of the teacher's kind, whose maps mean what the teacher's do."""

    def loss(
        self, outputs: Sequence[Tensor], targets: Any, config: TrainConfig
    ) -> dict[str, Tensor]:
        """Return the terms of the labels, and `teacher_classes` and `teacher_boxes`."""
        own, theirs = outputs[:-2], outputs[-2:]
        maps = by_head(own)[self._taught]
        return super().loss(own, targets, config) | distillation(maps, theirs, self.network.decode)


def distillation(maps: Maps, theirs: Sequence[Tensor], decode: Decode) -> dict[str, Tensor]:
    """Return the terms of a student's head and a teacher's, each logits and deltas first.

    Deltas outside their limits give the same boxes as those at the limits.
    """
    logits_BAKhw, deltas_BA4hw = (part.float() for part in maps[:2])
    wanted_BAKhw, their_deltas_BA4hw = (part.float() for part in theirs[:2])
    wanted_BAKhw = wanted_BAKhw.sigmoid()
    cross = F.binary_cross_entropy_with_logits(logits_BAKhw, wanted_BAKhw, reduction="none")
    off = (logits_BAKhw.sigmoid() - wanted_BAKhw).abs()
    sure_BM = wanted_BAKhw.amax(2).flatten(1)
    sure_BM = sure_BM * (sure_BM >= SURE)
    divisor = sure_BM.sum().clamp_min(1.0)
    overlap_BM = giou_pairs(decode.boxes(deltas_BA4hw), decode.boxes(their_deltas_BA4hw))
    return {
        "teacher_classes": (off**FOCUS * cross).sum() / divisor,
        "teacher_boxes": (sure_BM * (1 - overlap_BM)).sum() / divisor,
    }
