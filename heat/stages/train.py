"""`heat train`: train the thinned architecture, from scratch or from the supernet's weights."""

import sys
from pathlib import Path
from typing import Any

import torch

from deploy.gate import torch_detect
from supernet.architecture import Architecture
from supernet.checkpoint import read_info
from supernet.coco import DetectionSet
from supernet.detector import Detector
from supernet.distributed import first_process
from supernet.errors import UserError
from supernet.evaluate import evaluate
from supernet.inherit import inherit
from supernet.pretraining import load_backbone
from supernet.recipes import TrainConfig
from supernet.training import Judge, Running, fit

from ..learning import draw_batches, draw_learning
from ..source import load_supernet
from ..workspace import Workspace


def train(
    workspace: Workspace,
    data: DetectionSet,
    architecture: Architecture,
    config: TrainConfig,
    *,
    from_supernet: bool = False,
    backbone: Path | None = None,
    running: Running | None = None,
) -> dict[str, Any]:
    """Train a detector; class count and names come from the data.

    It starts from the supernet's weights, from a pretrained backbone, or from scratch.
    """
    architecture = architecture.with_(num_classes=data.num_classes)
    torch.manual_seed(config.seed)
    network = _inherited(workspace, architecture) if from_supernet else Detector(architecture)
    loaded = start_from(backbone, network)
    if first_process():
        draw_batches(data, architecture.input_size, config, workspace.train / "first-batches.jpg")
    done = fit(network, data, config, workspace.train, running)
    before = workspace.stage("train")
    if done.stood and before is not None:
        return before
    result = {
        **done.facts(),
        "images": len(data.records),
        "data": str(data.root),
        "inherited": from_supernet,
        "backbone": loaded,
    }
    if done.leads:
        history = read_info(done.checkpoint).facts["history"]
        draw_learning(history, workspace.train / "learning.svg")
        workspace.record("train", result)
    return result


def start_from(backbone: Path | None, network: Detector) -> dict[str, Any] | None:
    """Load a pretrained backbone, say how much of it fits, and return what fits and what not."""
    if backbone is None:
        return None
    loaded = load_backbone(backbone, network)
    if first_process():
        print(
            f"backbone: {loaded.used} weights used; the network has {len(loaded.missing)} others, "
            f"{len(loaded.left_over)} are left over",
            file=sys.stderr,
        )
    return loaded.facts()


def _inherited(workspace: Workspace, architecture: Architecture) -> Detector:
    thinned = workspace.need("thin", "heat thin")
    supernet = load_supernet(workspace)
    if supernet is None:
        raise UserError("--inherit needs a trained supernet: run heat supernet first")
    if Architecture.load(workspace.architecture) != architecture:
        raise UserError("--inherit needs the thinned architecture: run heat thin again")
    positions = tuple(tuple(chosen) for chosen in thinned["positions"])
    return inherit(supernet, architecture, positions)


def judge_on(data: DetectionSet) -> Judge:
    """Return what scores a network on a split while it is trained."""

    def judge(network: Detector) -> dict[str, float]:
        metrics = evaluate(torch_detect(network), data, progress=False)
        return {"ap": round(metrics.ap, 5), "ap50": round(metrics.ap50, 5)}

    return judge
