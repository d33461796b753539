"""A short training, and what it leaves."""

from pathlib import Path

import torch

from supernet.train.recipes import TrainConfig

CONFIG = TrainConfig(epochs=2, batch_size=4, precision="f32", warmup_steps=2)


def weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)
