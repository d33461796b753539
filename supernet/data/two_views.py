"""Two views of an image without labels: one to find its objects on, one to learn them from.

The weak view is placed as evaluation places images. The strong one is augmented as labelled images
are, but never cropped, in a fifth of the cases grey, and parts of it are erased (Xu et al. 2021,
Soft Teacher).
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from ..boxes import area
from ..letterbox import PAD_RGB, Image, box_factors, letterbox
from .augment import MIN_SIDE_PX, MIN_VISIBLE, AugmentConfig, augment
from .labelled_image import LabelledImage

GREY = 0.2
"""Share of the strong views without colours."""
MOST_ERASED = 3
"""Rectangles that are erased, at most."""
ERASED = (0.05, 0.25)
"""Sides of such a rectangle, as shares of those of the input."""


@dataclass(frozen=True, slots=True)
class TwoViews:
    """The target of an image without labels: its strong view is what the network is shown."""

    weak_HW3: Tensor
    """The weak view, uint8 RGB."""
    ratio_2: Tensor
    """Pixels of the strong view for one of the weak view, in x and y; negative where mirrored."""
    shift_2: Tensor
    """Where the corner (0, 0) of the weak view is in the strong one."""

    def to(self, device: torch.device) -> "TwoViews":
        """Return it on a device."""
        return TwoViews(*(part.to(device, non_blocking=True) for part in self._parts()))

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weak_HW3, self.ratio_2, self.shift_2

    def moved(self, boxes_N4: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes of the weak view in the strong one [M, 4], and which are visible in it [N].

        What is hardly visible is left out as augmentation leaves it out.
        """
        ends = boxes_N4.reshape(-1, 2, 2) * self.ratio_2 + self.shift_2
        moved_N4 = torch.cat([ends.amin(1), ends.amax(1)], 1)
        height, width = self.weak_HW3.shape[:2]
        limit = moved_N4.new_tensor([width, height, width, height])
        shown_N4 = torch.minimum(moved_N4.clamp_min(0), limit)
        sides_N2 = shown_N4[:, 2:] - shown_N4[:, :2]
        kept_N = (sides_N2.amin(1) > MIN_SIDE_PX) & (area(shown_N4) > MIN_VISIBLE * area(moved_N4))
        return shown_N4[kept_N], kept_N


class Shown(NamedTuple):
    """What the network is shown, and how its objects are found."""

    strong: Image
    target: TwoViews


def two_views(
    image: LabelledImage,
    input_hw: tuple[int, int],
    config: AugmentConfig,
    rng: np.random.Generator,
) -> Shown:
    """Return both views of an image."""
    weak, scale = letterbox(image.pixels, input_hw)
    strong = augment(image, input_hw, replace(config, crop=0.0), rng)
    assert strong.frame is not None
    height, width = image.pixels.shape[:2]
    ratio = (strong.frame[2:] - strong.frame[:2]) / (width, height)
    ratio /= box_factors((height, width), scale)[:2]
    target = TwoViews(
        torch.from_numpy(weak),
        torch.from_numpy(ratio.astype(np.float32)),
        torch.from_numpy(strong.frame[:2].astype(np.float32)),
    )
    return Shown(_spoilt(strong.pixels, rng), target)


def _spoilt(pixels: Image, rng: np.random.Generator) -> Image:
    """Return pixels grey or not, with parts erased."""
    if rng.random() < GREY:
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        pixels = np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
    H, W = pixels.shape[:2]
    for _ in range(rng.integers(0, MOST_ERASED + 1)):
        h, w = (max(1, round(side * rng.uniform(*ERASED))) for side in (H, W))
        y, x = int(rng.integers(0, H - h + 1)), int(rng.integers(0, W - w + 1))
        pixels[y : y + h, x : x + w] = PAD_RGB
    return pixels
