"""`heat adopt`: take a published DETR into the workspace, as if it had been trained here."""

from pathlib import Path

from supernet.checkpoint import WEIGHTS, CheckpointInfo, read_info, save_checkpoint
from supernet.data.detection_set import DetectionSet
from supernet.detr.family import DetrArchitecture
from supernet.detr.published import load_published
from supernet.errors import UserError
from supernet.train.run_files import STATE, forget

from ..records import Result
from ..workspace import Workspace


def adopt(
    workspace: Workspace,
    path: Path,
    architecture: DetrArchitecture,
    data: DetectionSet | None,
    *,
    restart: bool = False,
) -> Result:
    """Load a published checkpoint strictly and write it as the workspace's.

    With data its classes are the data's, by their category ids; else they are numbered. Weights
    that were trained in the workspace are replaced with `restart` only.
    """
    checkpoint = workspace.train / WEIGHTS
    if not restart:
        _keep_trained(workspace, checkpoint)
    network = load_published(path, architecture, data.category_ids if data else None)
    classes = network.architecture.num_classes
    names = data.names if data else tuple(f"category_{index}" for index in range(classes))
    info = CheckpointInfo(
        kind="detector",
        description=network.architecture.to_json(),
        names=names,
        epoch=1,
        epochs=1,
        facts={"adopted": path.name, "history": []},
    )
    with workspace.claimed(workspace.train, f"training in {workspace.train}"):
        if not restart:  # looked at again: a training may have ended meanwhile
            _keep_trained(workspace, checkpoint)
        forget(workspace.train)  # the training that is replaced, and its data
        workspace.forget("train")
        save_checkpoint(checkpoint, network.state_dict(), info)
    result = {
        "checkpoint": str(checkpoint),
        "adopted": str(path),
        "architecture": network.architecture.name,
        "classes": classes,
        "parameters": sum(p.numel() for p in network.parameters()),
        "data": str(data.root) if data else None,
    }
    workspace.record("train" if data is not None else "adopt", result)
    return result


def _keep_trained(workspace: Workspace, checkpoint: Path) -> None:
    """Refuse to replace weights that cost a training."""
    if (workspace.train / STATE).exists() or (
        checkpoint.exists() and "adopted" not in read_info(checkpoint).facts
    ):
        raise UserError(
            f"{checkpoint} holds a trained network: --restart replaces it, another --out keeps it"
        )
