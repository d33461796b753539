"""State dicts of torch checkpoints, read without executing anything that is in the file."""

from pathlib import Path

import torch
from torch import Tensor

from .errors import CheckpointError

PLACES = ("model", "state_dict")
"""Where files keep a state dict that is not all they hold."""
WRAPPED = "module."
"""What DistributedDataParallel puts before every key."""


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the weights of a file that is a state dict, or holds one at one of `PLACES`."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"no file {path}") from None
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} is no checkpoint of weights alone ({reason})") from None
    if isinstance(found, dict):
        found = next((found[place] for place in PLACES if place in found), found)
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise CheckpointError(f"{path} holds no state dict, nor one under {' or '.join(PLACES)}")
    if all(key.startswith(WRAPPED) for key in found):
        return {key.removeprefix(WRAPPED): value for key, value in found.items()}
    return dict(found)
