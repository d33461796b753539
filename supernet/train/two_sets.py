"""Labelled images and images without labels, of which every batch has as many as labelled ones."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..data.detection_set import Record
from ..data.ground_truth import GroundTruth
from ..data.two_views import TwoViews, two_views
from .recipes import TrainConfig
from .samples import Keyed, Samples, Weights, chance_of

MOST_MOSAICS = 0.5
"""Share of the labelled images that are shown with others, at most."""


class TwoSets(Keyed):
    """Augmented images of a detection set with their objects, and two views of other images.

    What is found on labelled images tells how far to trust what is found on the others, which are
    shown whole: so half of the labelled ones are too, and nothing is pasted into them.
    """

    def __init__(
        self,
        records: Sequence[Record],
        others: Sequence[Record],
        input_hw: tuple[int, int],
        config: TrainConfig,
        weights: Weights | None = None,
    ) -> None:
        """Take labelled images, weighted as of `Samples`, and `others` whose keys follow theirs."""
        mosaics = min(MOST_MOSAICS, config.augment.mosaic)
        calm = replace(config, augment=replace(config.augment, mosaic=mosaics, pasted=0.0))
        self.labelled = Samples(records, input_hw, calm, weights)
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
