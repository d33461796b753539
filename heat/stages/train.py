"""`heat train`: train the thinned architecture, from scratch or from the supernet's weights."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from deploy.gate import torch_detect
from supernet.architecture import Architecture
from supernet.checkpoint import load_weights, read_info
from supernet.claim import claimed
from supernet.coco import DetectionSet
from supernet.detection_set import check_trainable
from supernet.detector import Detector
from supernet.detr.detr import Host
from supernet.detr.mtkd import act_cores
from supernet.distributed import first_process
from supernet.errors import UserError
from supernet.evaluate import evaluate
from supernet.inherit import inherit
from supernet.network import AnyArchitecture, Network, build
from supernet.pretraining import load_backbone
from supernet.recipes import TrainConfig
from supernet.run_files import best_epoch
from supernet.scoring_memory import warn_of_memory
from supernet.training import Judge, Running, fit

from ..learning import draw_batches, draw_learning
from ..source import load_supernet
from ..workspace import Workspace


def train(
    workspace: Workspace,
    data: DetectionSet,
    architecture: AnyArchitecture,
    config: TrainConfig,
    *,
    from_supernet: bool = False,
    backbone: Path | None = None,
    weights: Path | None = None,
    students: int | None = None,
    running: Running | None = None,
) -> dict[str, Any]:
    """Train a detector; class count and names come from the data.

    It starts from the supernet's weights, from a pretrained backbone, from another checkpoint, or
    from scratch. `students` are the rounds of ACT that MTKD teaches a trained DETR.
    """
    check_trainable(data)
    architecture = architecture.with_(num_classes=data.num_classes)
    torch.manual_seed(config.seed)
    network = _inherited(workspace, architecture) if from_supernet else build(architecture)
    loaded = start_from(backbone, network)
    if weights is not None:
        load_weights(weights, network)
    if students is not None:
        _teach(network, students, trained=weights is not None)
    with claimed(workspace.train) if first_process() else nullcontext():
        if first_process():
            first = workspace.train / "first-batches.jpg"
            draw_batches(data, architecture.input_size, config, first)
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
        best = best_epoch(history)
        if best is not None:
            ap = next(row["ap"] for row in history if row["epoch"] == best)
            file = str(workspace.train / "best.safetensors")
            result["best"] = {"epoch": best, "ap": ap, "checkpoint": file}
        workspace.record("train", result)
    return result


def _teach(network: Network, rounds: int, *, trained: bool) -> None:
    """Let a trained DETR's training be MTKD's."""
    if not isinstance(network, Host):
        raise UserError(f"--recipe mtkd is for DETR, not for {network.architecture.name}")
    if network.architecture.levels > 1:
        raise UserError("--recipe mtkd: deformable attention has no ACT; one level is needed")
    if not trained:
        raise UserError("--recipe mtkd teaches a trained network: give its --weights")
    network.students = act_cores(network, rounds)


def start_from(backbone: Path | None, network: Network) -> dict[str, Any] | None:
    """Load a pretrained backbone, say how much of it fits, and return what fits and what not."""
    if backbone is None:
        return None
    if not isinstance(network, Detector):
        raise UserError(
            f"--backbone is what heat pretrain made of a HeatDETR: {network.architecture.name} has "
            "a ResNet (heat adopt takes published weights)"
        )
    loaded = load_backbone(backbone, network)
    if first_process():
        print(
            f"backbone: {loaded.used} weights used; the network has {len(loaded.missing)} others, "
            f"{len(loaded.left_over)} are left over",
            file=sys.stderr,
        )
    return loaded.facts()


def _inherited(workspace: Workspace, architecture: AnyArchitecture) -> Detector:
    thinned = workspace.need("thin", "heat thin")
    supernet = load_supernet(workspace)
    if supernet is None:
        raise UserError("--inherit needs a trained supernet: run heat supernet first")
    thin = Architecture.load(workspace.architecture)
    if thin != architecture:
        raise UserError("--inherit needs the thinned architecture: run heat thin again")
    positions = tuple(tuple(chosen) for chosen in thinned["positions"])
    return inherit(supernet, thin, positions)


def judge_on(data: DetectionSet) -> Judge:
    """Return what scores a network on a split while it is trained; warn now of its memory."""
    if first_process():
        warn_of_memory(data)

    def judge(network: Network) -> dict[str, float]:
        metrics = evaluate(torch_detect(network), data, progress=False)
        return {"ap": round(metrics.ap, 5), "ap50": round(metrics.ap50, 5)}

    return judge
