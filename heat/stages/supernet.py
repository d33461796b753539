"""`heat supernet`: train the Gumbel-softmax supernet once."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from supernet.checkpoint import WEIGHTS, read_info
from supernet.data.detection_set import DetectionSet, check_trainable
from supernet.errors import CheckpointError, DataError
from supernet.heatdetr.place import local_name
from supernet.heatdetr.supernet import SearchConfig, SearchSpace, Supernet
from supernet.train.loop import fit
from supernet.train.recipes import TrainConfig
from supernet.train.running import Running

from ..records import Result
from ..thinning.evaluation import split_held_out
from ..workspace import Workspace
from .train import start_from
from .training_record import record_training


def is_trained(workspace: Workspace) -> bool:
    """Return whether a workspace has a supernet whose training is finished."""
    path = workspace.supernet / WEIGHTS
    try:
        return path.exists() and read_info(path).finished
    except CheckpointError:
        return False


def search_of(workspace: Workspace, usual: SearchConfig) -> SearchConfig:
    """Return how a workspace's supernet is searched: as it was begun, else as `usual`.

    For commands that take a supernet as it is, whoever trained it.
    """
    path = workspace.supernet / WEIGHTS
    if not path.exists():
        return usual
    found: Any = read_info(path).facts.get("search")
    return SearchConfig(**found) if isinstance(found, dict) else usual


def before_elastic(
    workspace: Workspace, train: Callable[[Running], Result], running: Running
) -> Result:
    """Let `train` train the supernet that an elastic training starts from.

    With `running.restart` it is that training which begins again: a finished supernet of the same
    settings is kept.
    """
    if running.restart and is_trained(workspace):
        try:
            return train(replace(running, restart=False))
        except CheckpointError:
            pass  # of other settings
    return train(running)


def train_supernet(
    workspace: Workspace,
    data: DetectionSet,
    space: SearchSpace,
    config: TrainConfig,
    search: SearchConfig,
    *,
    backbone: Path | None = None,
    running: Running | None = None,
) -> Result:
    """Train the supernet on all training images but those kept out to read losses on."""
    check_trainable(data)
    torch.manual_seed(config.seed)
    network = Supernet(space, search)
    start: dict[str, str] = {}
    loaded = start_from(backbone, network, start)
    part, held = split_held_out(data)
    if len(part.records) < 2 or not part.num_boxes:
        raise DataError(
            f"{data.annotation_path}: {len(held.records)} of {len(data.records)} images are kept "
            f"out of the supernet's training, and the others, {len(part.records)} with "
            f"{part.num_boxes} boxes, are too few: add images"
        )
    with workspace.training(workspace.supernet):
        done = fit(network, part, config, workspace.supernet, running, start=start)

    def facts() -> Result:
        return {
            "images": len(part.records),
            "data": str(data.root),
            "backbone": loaded,
            "space": space.to_dict(),
            "logits": {
                local_name(*place): [round(value, 4) for value in values]
                for place, values in network.logits().items()
            },
        }

    return record_training(workspace, "supernet", workspace.supernet, done, facts)
