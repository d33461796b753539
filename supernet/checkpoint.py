"""Weights on disk: one safetensors file whose header describes the weights.

The header carries the architecture or search space, class names, epoch and versions, so that a
checkpoint is one file and cannot be separated from its meaning. Optimiser state for resuming is a
file of its own beside it (`supernet.train`). Files of torch are read without executing anything.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from .atomic import write_bytes
from .errors import CheckpointError, wrong_format

FORMAT_VERSION = 1
"""History of the header: 1, the first."""

WEIGHTS = "weights.safetensors"
"""The file in the folder of a training."""

PLACES = ("model", "state_dict")
"""Keys under which files of other programs keep their state dict."""
WRAPPED = "module."
"""Prefix that DistributedDataParallel adds to every key."""

Kind = Literal["detector", "supernet", "backbone"]


class EpochRow(TypedDict, total=False):
    """One epoch of a training; the terms of the loss are further keys, by name."""

    epoch: int
    learning_rate: float
    images_per_second: float
    memory_mb: int
    labelled_found: float
    """Share of the labelled objects that the averaged weights find (`UnlabelledTask`)."""
    ap: float
    ap50: float
    r: dict[str, list[float]]
    """Selection logits of a supernet, by place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointInfo:
    """The header of a checkpoint."""

    kind: Kind
    description: str
    """JSON of the architecture (detector, backbone) or of the search space (supernet)."""
    names: tuple[str, ...]
    """Class names, by class index."""
    epoch: int
    """Epochs finished."""
    epochs: int
    """Epochs planned."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """JSON values: data set, options, images per second, versions, `history`."""

    @property
    def finished(self) -> bool:
        """Whether its training is complete: after all epochs, or stopped early."""
        return self.epoch >= self.epochs or bool(self.facts.get("stopped_early"))

    @property
    def history(self) -> Sequence[EpochRow]:
        """The epochs of its training; `KeyError` for weights that record none."""
        return cast(Sequence[EpochRow], self.facts["history"])


def weights_file(path: Path) -> Path:
    """Return the file of weights: of a workspace those of the network that was trained in it."""
    if not path.is_dir():
        return path
    for found in (path / "train" / WEIGHTS, path / WEIGHTS):
        if found.exists():
            return found
    raise CheckpointError(f"{path} has no train/{WEIGHTS}: heat train makes it")


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None


def save_checkpoint(path: Path, weights: dict[str, Tensor], info: CheckpointInfo) -> None:
    """Write weights and header atomically."""
    header = {
        "format": str(FORMAT_VERSION),
        "kind": info.kind,
        "description": info.description,
        "names": json.dumps(info.names),
        "epoch": str(info.epoch),
        "epochs": str(info.epochs),
        "facts": json.dumps(info.facts),
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    write_bytes(path, save(tensors, header))


def read_info(path: Path) -> CheckpointInfo:
    """Read a checkpoint's header without its weights."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        version = int(header["format"])
        if version != FORMAT_VERSION:
            raise CheckpointError(wrong_format(path, version, [FORMAT_VERSION], "train again"))
        return CheckpointInfo(
            kind=cast(Kind, header["kind"]),
            description=header["description"],
            names=tuple(json.loads(header["names"])),
            epoch=int(header["epoch"]),
            epochs=int(header["epochs"]),
            facts=json.loads(header["facts"]),
        )
    except (FileNotFoundError, IsADirectoryError):
        raise CheckpointError(f"no checkpoint at {path}: train one with heat train") from None
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is truncated or no HEAT checkpoint ({error}): train again, or --resume"
        ) from None


def load_weights(path: Path, module: nn.Module) -> CheckpointInfo:
    """Load weights strictly into a module; raise `CheckpointError` naming the keys that differ."""
    info = read_info(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated ({error}): train again") from None
    own = module.state_dict()
    wrong = sorted(
        key
        for key in own.keys() | tensors.keys()
        if key not in own or key not in tensors or own[key].shape != tensors[key].shape
    )
    if wrong:
        raise CheckpointError(
            f"{path} does not fit: {len(wrong)} keys missing, left over or of another shape, "
            f"first {wrong[0]}"
        )
    module.load_state_dict(tensors)
    return info


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the weights of a file that is a state dict, or holds one at one of `PLACES`."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"no file {path}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception:  # torch's own text recommends to execute what the file holds
        raise CheckpointError(
            f"{path} is no checkpoint of weights alone: a file of tensors that torch.save wrote is "
            "needed; other Python objects are not loaded"
        ) from None
    if isinstance(found, dict):
        found = next((found[place] for place in PLACES if place in found), found)
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise CheckpointError(f"{path} holds no state dict, nor one under {' or '.join(PLACES)}")
    if all(key.startswith(WRAPPED) for key in found):
        return {key.removeprefix(WRAPPED): value for key, value in found.items()}
    return dict(found)
