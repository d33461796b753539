"""`heat supernet`: train the Gumbel-softmax supernet once."""

from typing import Any

import torch

from supernet.coco import DetectionSet
from supernet.supernet import SearchConfig, SearchSpace, Supernet
from supernet.training import TrainConfig, fit

from ..accuracy import split_held_out
from ..workspace import Workspace


def train_supernet(
    workspace: Workspace,
    data: DetectionSet,
    space: SearchSpace,
    config: TrainConfig,
    search: SearchConfig,
    *,
    resume: bool = False,
    restart: bool = False,
) -> dict[str, Any]:
    """Train the supernet on all training images but those kept out to read losses on."""
    torch.manual_seed(config.seed)
    network = Supernet(space, search)
    part, _ = split_held_out(data)
    done = fit(network, part, config, workspace.supernet, resume=resume, restart=restart)
    before = workspace.stage("supernet")
    if done.stood and before is not None:
        return before
    result = {
        **done.facts(),
        "images": len(part.records),
        "data": str(data.root),
        "space": space.to_json(),
        "logits": {
            f"s{stage}_{position}": [round(value, 4) for value in values]
            for (stage, position), values in network.logits().items()
        },
    }
    return workspace.record("supernet", result) if done.leads else result
