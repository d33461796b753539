"""Labelled images and images without labels, of which every batch has as many as labelled ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data.detection_set import Record
from ..data.ground_truth import GroundTruth
from ..data.two_views import TwoViews, two_views
from .feed import Keyed, Samples, chance_of
from .recipes import TrainConfig


class TwoSets(Keyed):
    """Augmented images of a detection set with their objects, and two views of other images."""

    def __init__(
        self,
        records: Sequence[Record],
        others: Sequence[Record],
        input_hw: tuple[int, int],
        config: TrainConfig,
    ) -> None:
        """Take labelled images, and `others` whose keys follow theirs."""
        self.labelled = Samples(records, input_hw, config)
        self.others = others

    def __len__(self) -> int:
        """Return the number of labelled images."""
        return len(self.labelled)

    def sample(
        self, epoch: int, index: int, again: int = 0
    ) -> tuple[Tensor, GroundTruth | TwoViews]:
        """Return one augmented image and its objects, or the strong view and how to find them."""
        if index < len(self):
            return self.labelled.sample(epoch, index, again)
        config = self.labelled.config
        rng = chance_of(config, epoch, index, again)
        image = self.labelled.load(self.others[index - len(self)])
        shown = two_views(image, self.labelled.input_hw, config.augment, rng)
        return torch.from_numpy(shown.strong), shown.target
