"""Images as training shows them in its last epochs: for statistics of BatchNorm.

A network fits the statistics of the images that it learnt from, and those are augmented. Of plain
images the statistics are others: on BCCD they cost networks that inherit their weights 3.7
points of AP on average, and trained ones 2.3 (benchmarks/results/elastic/recalibration-bccd.json).
"""

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from ..checkpoint import CheckpointInfo
from ..data.augment import AugmentConfig
from ..data.detection_set import DetectionSet
from .distributed import Group
from .feed import feed
from .recipes import TrainConfig


def augment_of(checkpoint: CheckpointInfo) -> AugmentConfig:
    """Return how a training showed its images; what an older version did not know is off."""
    config: Any = checkpoint.facts.get("config")
    if not isinstance(config, dict):
        return AugmentConfig()
    values = dict(config["augment"], scale=tuple(config["augment"]["scale"]))
    known = values.keys() & {field.name for field in fields(AugmentConfig)}
    return AugmentConfig(**{name: values[name] for name in known})


def shown_in_training(
    data: DetectionSet, input_hw: tuple[int, int], augment: AugmentConfig, images: int
) -> Iterator[Tensor]:
    """Yield batches of augmented images, uint8 [B, H, W, 3], at least `images` of them.

    They have no mosaics, as in the last epochs; small sets are shown several times. The same are
    yielded each time.
    """
    config = TrainConfig(epochs=1, augment=replace(augment, mosaic=0.0))
    epochs = range(-(-images // len(data.records)))
    for batch, _ in feed(data, input_hw, config, epochs, group=Group(), workers=0, skip=0):
        yield batch
        images -= len(batch)
        if images <= 0:
            return
