"""Memory of a training: its peak, and the batch size that fits."""

import resource
import sys
from collections.abc import Callable

import torch

from ..errors import out_of_memory
from .recipes import TrainConfig


def memory_mb() -> float:
    """Return the most memory that was in use: the GPU's where there is one, else this process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory did not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or out_of_memory(error) is not None


def what_fits(train: Callable[[int], None], config: TrainConfig, size: int, world: int) -> str:
    """Return the message of an error: which batch size fits, after trying smaller ones.

    `train` computes the gradients of that many images, of the `size` that this process of `world`
    had of a batch.
    """
    asked = config.batch_size
    size //= 2
    while size >= 2:
        try:
            train(size + size // 2)  # as many as the last batch of an epoch may have
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            size //= 2
            continue
        fits = size * world
        return (
            f"out of memory at --batch-size {asked}: {fits} fits, and with --accumulate "
            f"{-(-asked * config.accumulate // fits)} takes steps of about as many images"
        )
    return f"out of memory at --batch-size {asked} and at any: --input-size must be smaller"
