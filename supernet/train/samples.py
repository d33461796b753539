"""Training samples: each depends on (seed, epoch, image, how often the epoch showed it) alone."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.augment import augment, largest_scale, mosaic
from ..data.detection_set import Record
from ..data.ground_truth import GroundTruth
from ..data.labelled_image import LabelledImage, load_image
from ..data.pasting import paste_objects
from ..errors import DataError
from .recipes import TrainConfig

Key = tuple[int, int, int]
"""(epoch, index of a record, how often the epoch has shown it before)."""

Weights = npt.NDArray[np.float64]
"""Probability of each image to be drawn next, [images]."""

SHRINK = {8: 0.3, 4: 0.4, 2: 0.5}
"""Images are decoded so many times smaller where they are then shown at this scale at most.

Two resizes in a row average more than one does: by 10 % of the noise at these limits, by 25 % where
the second scale is 0.95.
"""


def shrink_for(largest_scale: float) -> int:
    """Return how many times smaller an image may be decoded that is shown at this scale at most."""
    return next((f for f, limit in SHRINK.items() if largest_scale * f <= limit), 1)


def chance_of(config: TrainConfig, epoch: int, index: int, again: int) -> np.random.Generator:
    """Return the random numbers of a sample."""
    return np.random.default_rng([config.seed, epoch, index, *[again] * (again > 0)])


class Keyed(Dataset[Any], ABC):
    """A source of training samples, each made from its key alone."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def sample(self, epoch: int, index: int, again: int = 0) -> tuple[Tensor, Any]:
        """Return one augmented image, uint8 [H, W, 3], and its target."""

    def __getitems__(self, keys: Sequence[Key]) -> tuple[Tensor, list[Any]] | str:
        """Return a batch: uint8 images [B, H, W, 3] and targets; or an error message."""
        try:
            samples = [self.sample(*key) for key in keys]
        except DataError as error:
            return str(error)
        return torch.stack([image for image, _ in samples]), [target for _, target in samples]


class Samples(Keyed):
    """Augmented images of a detection set, with their objects."""

    def __init__(
        self,
        records: Sequence[Record],
        input_hw: tuple[int, int],
        config: TrainConfig,
        weights: Weights | None = None,
    ) -> None:
        """Take images to augment as `config.augment` has it, for the network input `input_hw`.

        `weights` are the probabilities of what is shown beside an image, by default equal ones.
        """
        self.records, self.input_hw, self.config = records, input_hw, config
        self._cumulated = None if weights is None else weights.cumsum()

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.records)

    def sample(self, epoch: int, index: int, again: int = 0) -> tuple[Tensor, GroundTruth]:
        """Return one augmented image and its objects, maybe in a mosaic, or with others pasted."""
        config = self.config
        rng = chance_of(config, epoch, index, again)
        together = config.augment.mosaic and epoch < config.epochs - config.plain_epochs
        if together and rng.random() < config.augment.mosaic:
            chosen = [index, *self._others(3, rng)]
            images = [self.load(self.records[i]) for i in chosen]
            image = mosaic(images, self.input_hw, config.augment, rng)
        else:
            image = self._alone(index, rng)
        if config.augment.pasted and rng.random() < config.augment.pasted:
            donor = self._others(1, rng)[0]
            image = paste_objects(image, self._alone(donor, rng), rng)
        return torch.from_numpy(image.pixels), GroundTruth(
            torch.from_numpy(image.boxes_xyxy),
            torch.from_numpy(image.labels),
            None if image.weights is None else torch.from_numpy(image.weights),
        )

    def _alone(self, index: int, rng: np.random.Generator) -> LabelledImage:
        return augment(self.load(self.records[index]), self.input_hw, self.config.augment, rng)

    def _others(self, count: int, rng: np.random.Generator) -> list[int]:
        last = len(self.records) - 1
        if self._cumulated is None:
            return [int(index) for index in rng.integers(0, last + 1, count)]
        drawn = self._cumulated.searchsorted(rng.random(count), side="right")
        return [min(last, int(index)) for index in drawn]

    def load(self, record: Record) -> LabelledImage:
        """Return an image before augmentation, a large one decoded smaller."""
        size = record.height, record.width
        most = largest_scale(size, self.input_hw, self.config.augment)
        return load_image(record, shrink_for(most))
