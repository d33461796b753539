"""`heat pretrain`: train a backbone to classify images."""

import torch

from supernet.checkpoint import load_weights
from supernet.errors import DataError
from supernet.heatdetr.architecture import Architecture
from supernet.train.loop import run_task
from supernet.train.pretraining import Classifier, ClassifyTask, ImageFolders, accuracy
from supernet.train.recipes import TrainConfig
from supernet.train.running import Running

from ..records import Result
from ..workspace import Workspace
from .training_record import record_training


def pretrain(
    workspace: Workspace,
    images: ImageFolders,
    val: ImageFolders | None,
    architecture: Architecture,
    config: TrainConfig,
    running: Running,
) -> Result:
    """Train a backbone and a linear layer; top-1 and top-5 accuracy on the val split."""
    if len(images.paths) < 2:
        raise DataError(f"{images.root}: at least 2 training images needed")
    torch.manual_seed(config.seed)
    network = Classifier(architecture, len(images.names))
    network.trunk.set_drop_path(config.drop_path)
    task = ClassifyTask(network, images)
    with workspace.training(workspace.pretrain):
        done = run_task(task, config, workspace.pretrain, running)

    def facts() -> Result:
        load_weights(done.checkpoint, network)
        return {
            "images": len(images.paths),
            "classes": len(images.names),
            "data": str(images.root),
            **(accuracy(network.eval(), val) if val is not None and done.leads else {}),
        }

    return record_training(workspace, "pretrain", workspace.pretrain, done, facts)
