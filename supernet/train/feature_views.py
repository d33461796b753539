"""Views of images: those that a teacher saw, and the student's crops of them.

A teacher sees each image whole, and further views as fixed crops, letterboxed to its input. The
student sees a random crop of one of these views, flipped and recoloured; the teacher's features of
it are the same crop of the teacher's map.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.augment import recoloured
from ..data.image_files import image_size
from ..data.random_crop import random_crop
from ..data.unlabelled import UnlabelledImages
from ..errors import DataError
from ..letterbox import Image, box_factors, letterbox, read_image, resized, scale_to_fit
from .feature_cache import FeatureCache
from .feature_key import CacheKey, Row
from .recipes import TrainConfig
from .samples import Keyed, chance_of, shrink_for

VIEW_AREA = (0.25, 0.6)
"""Area of a fixed crop, as a share of the image."""
AREA = (0.3, 1.0)
"""Area of the student's crop, as a share of the view."""
RATIO = (3 / 4, 4 / 3)
"""Width over height of a crop, relative to those of what it is cut from, or of the input."""


class Box(NamedTuple):
    """A part of an image, as shares of its width and height."""

    x1: float
    y1: float
    x2: float
    y2: float

    def pixels(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return x1, y1, x2, y2 in whole pixels, at least one wide and high."""
        x1, y1 = min(width - 1, round(self.x1 * width)), min(height - 1, round(self.y1 * height))
        return x1, y1, max(x1 + 1, round(self.x2 * width)), max(y1 + 1, round(self.y2 * height))


WHOLE = Box(0.0, 0.0, 1.0, 1.0)


def view_box(index: int, view: int) -> Box:
    """Return the part of the image `index` that a view shows: view 0 the whole."""
    if view == 0:
        return WHOLE
    rng = np.random.default_rng([view, index])
    side, ratio = rng.uniform(*VIEW_AREA) ** 0.5, np.exp(rng.uniform(*np.log(RATIO)) / 2)
    w, h = min(1.0, side * ratio), min(1.0, side / ratio)
    x, y = rng.uniform(0, 1 - w), rng.uniform(0, 1 - h)
    return Box(x, y, x + w, y + h)


def teacher_views(
    images: UnlabelledImages, key: CacheKey, first_row: int
) -> Iterator[tuple[Path, Image | None]]:
    """Yield file and teacher's input of each row of a cache; None where it cannot be decoded."""
    for index in range(first_row // key.views, key.num_images):
        path = images.paths[index]
        image = read_image(path)
        for view in range(key.views):
            if index * key.views + view >= first_row:
                shown = None if image is None else teacher_view(image, index, view, key.input_hw)
                yield path, shown


def teacher_view(image: Image, index: int, view: int, input_hw: tuple[int, int]) -> Image:
    """Return a view of an image as the teacher's input."""
    x1, y1, x2, y2 = view_box(index, view).pixels(*image.shape[:2])
    return letterbox(image[y1:y2, x1:x2], input_hw)[0]


@dataclass(frozen=True, slots=True)
class FeatureTarget:
    """The teacher's maps of one view, and which part of them the student sees."""

    maps: tuple[Tensor, ...]
    """In half precision, [C, h, w] each."""
    box: Tensor
    """x1, y1, x2, y2 as shares of the maps, x1 > x2 where the student's image is mirrored."""

    def to(self, device: torch.device) -> "FeatureTarget":
        """Return it on a device."""
        maps = tuple(one.to(device, non_blocking=True) for one in self.maps)
        return FeatureTarget(maps, self.box.to(device, non_blocking=True))


@dataclass(frozen=True, slots=True)
class LiveTarget:
    """A view whose features are not kept, and which part of it the student sees."""

    path: Path
    view_HW3: Tensor
    """The teacher's input, uint8; it stays on the CPU."""
    box: Tensor
    """As of `FeatureTarget`."""

    def to(self, device: torch.device) -> "LiveTarget":
        """Return it with its box on a device."""
        return LiveTarget(self.path, self.view_HW3, self.box.to(device, non_blocking=True))

    def with_maps(self, maps: Sequence[Row], row: int) -> FeatureTarget:
        """Return it with its row of the teacher's maps."""
        own = (torch.from_numpy(np.array(one[row])) for one in maps)
        return FeatureTarget(tuple(own), self.box.cpu()).to(self.box.device)


class FeatureViews(Keyed):
    """The student's images, with the teacher's features of them, or with what it is to see."""

    def __init__(
        self,
        cache: FeatureCache,
        input_hw: tuple[int, int],
        config: TrainConfig,
        others: Sequence[Path] = (),
    ) -> None:
        """Take a complete cache, images that are not in it, and the student's input size."""
        self.cache, self.input_hw, self.config = cache, input_hw, config
        self.others = others
        self._reported: set[Path] = set()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.cache.usable) + len(self.others)

    def sample(
        self, epoch: int, index: int, again: int = 0
    ) -> tuple[Tensor, FeatureTarget | LiveTarget]:
        """Return one crop of one view, uint8 [H, W, 3], and the features of it."""
        rng = chance_of(self.config, epoch, index, again)
        cache, live = self.cache, index - len(self.cache.usable)
        view = int(rng.integers(0, cache.key.views))
        image = self._live(live) if live >= 0 else None
        if image is None:
            kept = cache.usable[index % len(cache.usable)]
            pixels, box = self._shown(self._load(kept, view), kept, view, rng)
            maps = tuple(torch.from_numpy(one) for one in cache.row(kept, view))
            return pixels, FeatureTarget(maps, box)
        place = cache.key.num_images + live
        pixels, box = self._shown(image, place, view, rng)
        seen = torch.from_numpy(teacher_view(image, place, view, cache.key.input_hw))
        return pixels, LiveTarget(self.others[live], seen, box)

    def _live(self, index: int) -> Image | None:
        """Return an image that is not in the cache; None, and a warning, where it is broken."""
        path = self.others[index]
        image = read_image(path)
        if image is None and path not in self._reported:
            self._reported.add(path)
            print(
                f"warning: {path} cannot be decoded: another image is shown instead",
                file=sys.stderr,
                flush=True,
            )
        return image

    def _shown(
        self, image: Image, index: int, view: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return a crop of a view, uint8 [H, W, 3], and where it is on the teacher's maps."""
        x1, y1, x2, y2 = view_box(index, view).pixels(*image.shape[:2])
        shown = image[y1:y2, x1:x2]
        pixels, box = random_part(shown, self.input_hw, rng)
        if rng.random() < self.config.augment.flip:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
            box = Box(box.x2, box.y1, box.x1, box.y2)
        pixels = recoloured(pixels, self.config.augment, rng)
        on_map = _letterboxed(box, shown.shape[:2], self.cache.key.input_hw)
        return torch.from_numpy(pixels), torch.tensor(on_map)

    def _load(self, index: int, view: int) -> Image:
        """Return an image, a large one decoded smaller."""
        path = self.cache.images.paths[index]
        size, shrink = image_size(path), 1
        if size is not None:
            box = view_box(index, view)
            shares = (box.y2 - box.y1, box.x2 - box.x1)
            smallest = [
                max(1.0, side * share * AREA[0] ** 0.5 * RATIO[0] ** 0.5)
                for side, share in zip(size, shares, strict=True)
            ]
            most = max(wanted / side for wanted, side in zip(self.input_hw, smallest, strict=True))
            shrink = shrink_for(most)
        image = read_image(path, shrink=shrink)
        if image is None:
            raise DataError(f"cannot decode {path}, which could be decoded before: --restart")
        return image


def random_part(
    image: Image, input_hw: tuple[int, int], rng: np.random.Generator
) -> tuple[Image, Box]:
    """Return a part of random area, place and shape, resized to the input, and where it was."""
    height, width = image.shape[:2]
    own = input_hw[1] / input_hw[0]
    x1, y1, x2, y2 = random_crop(image.shape, AREA, (own * RATIO[0], own * RATIO[1]), rng)
    box = Box(x1 / width, y1 / height, x2 / width, y2 / height)
    return resized(image[y1:y2, x1:x2], input_hw), box


def _letterboxed(box: Box, image_hw: tuple[int, ...], input_hw: tuple[int, int]) -> Box:
    """Return a part of an image as a part of the input that the image was letterboxed to."""
    height, width = image_hw[:2]
    factors = box_factors((height, width), scale_to_fit((height, width), input_hw))
    across, down = width * factors[0] / input_hw[1], height * factors[1] / input_hw[0]
    return Box(box.x1 * across, box.y1 * down, box.x2 * across, box.y2 * down)
