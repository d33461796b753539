"""A short training, and what it leaves."""

from pathlib import Path

import torch

from supernet.data.coco import load_split
from supernet.data.detection_set import DetectionSet
from supernet.train.recipes import TrainConfig

CONFIG = TrainConfig(epochs=2, batch_size=4, precision="f32", warmup_steps=2)


def weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def first_images(shapes: Path, count: int) -> DetectionSet:
    """Return the first training images of the drawn set."""
    found = load_split(shapes, "train")
    return found.of(found.records[:count])
