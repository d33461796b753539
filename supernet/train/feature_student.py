"""The part of a detector that learns a teacher's features, and how far it is from them.

The loss is that of RT-DETRv4 (Liao et al. 2025, arXiv 2510.25257): a linear map to the teacher's
channels, and one minus the cosine per position. Suffixes: C the teacher's channels, h and w cells.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..heatdetr.architecture import Architecture
from ..heatdetr.detector import Detector

LEVELS = ("l1", "l2", "l3", "l4")
"""Maps of the backbone with SAM, at strides 8, 16, 32, 64."""
STRIDES = (8, 16, 32, 64)
FINER = 0.75
"""A level is not taught by maps whose cells are wider than its own divided by this."""


class TeacherMap(NamedTuple):
    """One of the teacher's maps."""

    channels: int
    stride: float
    """Pixels of a cell's side on the student's input."""


class Lesson(NamedTuple):
    """A map of the student that learns one of the teacher's."""

    level: str
    """One of `LEVELS`, or `out`: SCM's map."""
    map: int
    """Index of the teacher's map."""

    @property
    def name(self) -> str:
        """Name of a term of the loss."""
        return f"{self.level}-{self.map}"


def lessons(maps: Sequence[TeacherMap]) -> tuple[Lesson, ...]:
    """Return what learns what: SCM's map all of the maps, a level the one of the nearest stride.

    A level finer than all of the maps learns none: they do not say what is in its cells.
    """
    found = [Lesson("out", index) for index in range(len(maps))]
    finest = min(one.stride for one in maps)
    for level, stride in zip(LEVELS, STRIDES, strict=True):
        if stride >= FINER * finest:
            ratios = [max(stride / one.stride, one.stride / stride) for one in maps]
            found.append(Lesson(level, ratios.index(min(ratios))))
    return tuple(found)


class FeatureStudent(nn.Module):
    """Backbone, SAM and SCM of a detector, with a linear map to the teacher for each lesson."""

    def __init__(self, architecture: Architecture, maps: Sequence[TeacherMap]) -> None:
        """Build a detector and remove what follows SCM."""
        super().__init__()
        self.trunk = Detector(architecture)
        self.trunk.keep_wired(self.trunk.wire_scm)
        self.lessons = lessons(maps)
        _, d2, d3, d4 = architecture.widths
        widths = {"l1": d2, "l2": d3, "l3": d4, "l4": d4, "out": d4}
        self.projections = nn.ModuleDict(
            {
                lesson.name: nn.Conv2d(widths[lesson.level], maps[lesson.map].channels, 1)
                for lesson in self.lessons
            }
        )

    def forward(self, image_BHW3: Tensor) -> tuple[Tensor, ...]:
        """Map uint8 RGB images to features [B, C, h, w], one for each lesson."""
        found = self.trunk.wire_scm(
            lambda place, *inputs: self.trunk.units[place](*inputs), image_BHW3
        )
        by_level = dict(zip((*LEVELS, "out"), found, strict=True))
        return tuple(
            self.projections[lesson.name](by_level[lesson.level]) for lesson in self.lessons
        )


def seen_through(map_BChw: Tensor, boxes_B4: Tensor, cells_hw: tuple[int, int]) -> Tensor:
    """Return the part of each map within a box, as so many cells, interpolated linearly.

    Boxes are x1, y1, x2, y2 as shares of the map; one with x1 > x2 mirrors it.
    """
    x1, y1, x2, y2 = boxes_B4.unbind(1)
    zero = torch.zeros_like(x1)
    across = torch.stack([x2 - x1, zero, x1 + x2 - 1], 1)
    down = torch.stack([zero, y2 - y1, y1 + y2 - 1], 1)
    size = [len(map_BChw), 1, *cells_hw]
    grid = F.affine_grid(torch.stack([across, down], 1), size, align_corners=False)
    return F.grid_sample(map_BChw, grid, padding_mode="border", align_corners=False)


def distance(student_BChw: Tensor, teacher_BChw: Tensor) -> Tensor:
    """Return the mean over positions of one minus the cosine."""
    return 1 - F.cosine_similarity(student_BChw.float(), teacher_BChw, dim=1).mean()
