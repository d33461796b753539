"""Labelled images and images without labels, of which every batch has as many as labelled ones."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.detection_set import Record
from ..data.ground_truth import GroundTruth
from ..data.two_views import TwoViews, two_views
from .feed import Samples
from .recipes import TrainConfig


class TwoSets(Samples):
    """Augmented images of a detection set with their objects, and two views of other images."""

    def __init__(
        self,
        records: Sequence[Record],
        others: Sequence[Record],
        input_hw: tuple[int, int],
        config: TrainConfig,
    ) -> None:
        """Take labelled images, and `others` whose keys follow theirs."""
        super().__init__(records, input_hw, config)
        self.others = others

    def sample(self, epoch: int, index: int) -> tuple[Tensor, GroundTruth | TwoViews]:  # type: ignore[override]
        """Return one augmented image and its objects, or the strong view and how to find them."""
        if index < len(self.records):
            return super().sample(epoch, index)
        rng = np.random.default_rng([self.config.seed, epoch, index])
        image = self.load(self.others[index - len(self.records)])
        shown = two_views(image, self.input_hw, self.config.augment, rng)
        return torch.from_numpy(np.ascontiguousarray(shown.strong)), shown.target
