"""`heat pretrain`: train a backbone to tell classes of pictures apart."""

from contextlib import nullcontext
from typing import Any

import torch

from supernet.checkpoint import load_weights
from supernet.errors import DataError
from supernet.heatdetr.architecture import Architecture
from supernet.train.claim import claimed
from supernet.train.distributed import first_process
from supernet.train.loop import run_task
from supernet.train.pretraining import Classifier, ClassifyTask, Pictures, accuracy
from supernet.train.recipes import TrainConfig
from supernet.train.running import Running

from ..workspace import Workspace


def pretrain(
    workspace: Workspace,
    pictures: Pictures,
    val: Pictures | None,
    architecture: Architecture,
    config: TrainConfig,
    running: Running,
) -> dict[str, Any]:
    """Train a backbone and a linear layer; top-1 and top-5 accuracy on the val split."""
    if len(pictures.paths) < 2:
        raise DataError(f"{pictures.root}: at least 2 training pictures needed")
    torch.manual_seed(config.seed)
    network = Classifier(architecture, len(pictures.names))
    network.trunk.set_drop_path(config.drop_path)
    task = ClassifyTask(network, pictures)
    with claimed(workspace.pretrain) if first_process() else nullcontext():
        done = run_task(network, task, config, workspace.pretrain, running)
    before = workspace.stage("pretrain")
    if done.stood and before is not None:
        return before
    load_weights(done.checkpoint, network)
    result = {
        **done.facts(),
        "images": len(pictures.paths),
        "classes": len(pictures.names),
        "data": str(pictures.root),
        **(accuracy(network.eval(), val) if val is not None and done.leads else {}),
    }
    return workspace.record("pretrain", result) if done.leads else result
