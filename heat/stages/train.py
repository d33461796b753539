"""`heat train`: train the thinned architecture, from scratch or from the supernet's weights."""

from typing import Any

import torch

from supernet.architecture import Architecture
from supernet.coco import DetectionSet
from supernet.detector import Detector
from supernet.errors import UserError
from supernet.inherit import inherit
from supernet.training import TrainConfig, fit

from ..source import load_supernet
from ..workspace import Workspace


def train(
    workspace: Workspace,
    data: DetectionSet,
    architecture: Architecture,
    config: TrainConfig,
    *,
    from_supernet: bool = False,
    resume: bool = False,
    restart: bool = False,
) -> dict[str, Any]:
    """Train a detector; class count and names come from the data."""
    architecture = architecture.with_(num_classes=data.num_classes)
    torch.manual_seed(config.seed)
    network = _inherited(workspace, architecture) if from_supernet else Detector(architecture)
    done = fit(network, data, config, workspace.train, resume=resume, restart=restart)
    before = workspace.stage("train")
    if done.stood and before is not None:
        return before
    result = {
        **done.facts(),
        "images": len(data.records),
        "data": str(data.root),
        "inherited": from_supernet,
    }
    return workspace.record("train", result) if done.leads else result


def _inherited(workspace: Workspace, architecture: Architecture) -> Detector:
    thinned = workspace.need("thin", "heat thin")
    supernet = load_supernet(workspace)
    if supernet is None:
        raise UserError("--inherit needs a trained supernet: run heat supernet first")
    if Architecture.load(workspace.architecture) != architecture:
        raise UserError("--inherit needs the thinned architecture: run heat thin again")
    positions = tuple(tuple(chosen) for chosen in thinned["positions"])
    return inherit(supernet, architecture, positions)
