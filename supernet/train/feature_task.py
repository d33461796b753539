"""The task of learning a teacher's features."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.unlabelled import UnlabelledImages
from .backbone_task import BackboneTask
from .feature_cache import BATCH, FeatureCache, Teacher
from .feature_student import FeatureStudent, distance, seen_through
from .feature_views import FeatureViews, LiveTarget
from .recipes import TrainConfig
from .task import Batch


class FeatureTask(BackboneTask):
    """Features of a teacher, learnt by a `FeatureStudent`.

    The teacher's channels are brought to mean 0 and deviation 1 over the images first: without it a
    mean that all positions share would make every cosine large.
    """

    def __init__(
        self,
        network: FeatureStudent,
        cache: FeatureCache,
        others: UnlabelledImages | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        """Train `network` on a complete cache, and on other images with the teacher at hand."""
        super().__init__(network, network.trunk.architecture)
        self.lessons, self.cache = network.lessons, cache
        self.names: tuple[str, ...] = ()
        self.others = () if others is None else others.paths
        self.teacher = teacher
        self.num_images = len(cache.usable) + len(self.others)
        self.digest = cache.key.images + ("" if others is None else others.digest)
        self._scales = [[torch.from_numpy(part) for part in scale] for scale in cache.scales]

    def facts(self) -> dict[str, object]:
        """Return teacher, data, and number of images."""
        roots = [root.name for root in self.cache.images.roots]
        return {"teacher": self.cache.key.teacher, "data": roots, "images": self.num_images}

    def source(self, config: TrainConfig) -> FeatureViews:
        """Return crops of views, flipped and recoloured, with the teacher's features."""
        return FeatureViews(self.cache, self.size, config, self.others)

    def prepare(self, batch: Batch, config: TrainConfig) -> Batch:
        """Return a batch with the features that are not kept."""
        images, targets = batch
        live = [i for i, target in enumerate(targets) if isinstance(target, LiveTarget)]
        if not live:
            return batch
        assert self.teacher is not None
        targets = list(targets)
        parts = [live[first : first + BATCH] for first in range(0, len(live), BATCH)]
        views = (np.stack([targets[i].view_HW3.numpy() for i in part]) for part in parts)
        for part, maps in zip(parts, self.teacher.stream(views), strict=True):
            self.cache.key.check_finite(maps, [targets[i].path for i in part])
            for row, i in enumerate(part):
                targets[i] = targets[i].with_maps(maps, row)
        return images, targets

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
