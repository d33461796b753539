"""The task of learning a teacher's features."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .backbone_task import BackboneTask
from .feature_cache import FeatureCache
from .feature_student import FeatureStudent, distance, seen_through
from .feature_views import FeatureViews
from .recipes import TrainConfig


class FeatureTask(BackboneTask):
    """Features of a teacher, learnt by a `FeatureStudent`.

    The teacher's channels are brought to mean 0 and deviation 1 over the images first: without it a
    mean that all positions share would make every cosine large.
    """

    def __init__(self, network: FeatureStudent, cache: FeatureCache) -> None:
        """Train `network` on a complete cache."""
        super().__init__(network, network.trunk.architecture)
        self.lessons, self.cache = network.lessons, cache
        self.names: tuple[str, ...] = ()
        self.num_images = len(cache.usable)
        self.digest = cache.key.images
        self._scales = [[torch.from_numpy(part) for part in scale] for scale in cache.scales]

    def facts(self) -> dict[str, object]:
        """Return teacher, data, and number of images."""
        roots = [root.name for root in self.cache.images.roots]
        return {"teacher": self.cache.key.teacher, "data": roots, "images": self.num_images}

    def source(self, config: TrainConfig) -> FeatureViews:
        """Return crops of views, flipped and recoloured, with the teacher's features."""
        return FeatureViews(self.cache, self.size, config)

    def loss(
        self, outputs: Sequence[Tensor], targets: Any, config: TrainConfig
    ) -> dict[str, Tensor]:
        """Return one minus the cosine, by lesson."""
        boxes_B4 = torch.stack([target.box for target in targets])
        maps = []
        for index, (mean_C, std_C) in enumerate(self._scales):
            map_BChw = torch.stack([target.maps[index] for target in targets]).float()
            mean, std = (part.to(map_BChw.device)[:, None, None] for part in (mean_C, std_C))
            maps.append((map_BChw - mean) / std)
        return {
            lesson.name: distance(
                output, seen_through(maps[lesson.map], boxes_B4, (output.shape[2], output.shape[3]))
            )
            for lesson, output in zip(self.lessons, outputs, strict=True)
        }
