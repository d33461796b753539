"""The weights that a thinned network inherits of an elastic supernet: ready without a training."""

import sys
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from deploy.gate import torch_detect
from supernet.checkpoint import WEIGHTS, CheckpointInfo, file_digest, read_info, save_checkpoint
from supernet.counting import count_macs
from supernet.data.augment import AugmentConfig
from supernet.data.average_precision import known
from supernet.data.coco import find_split, load_split
from supernet.data.detection_set import DetectionSet
from supernet.data.evaluate import evaluate
from supernet.errors import UserError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.inherit import inherit
from supernet.heatdetr.recalibrate import recalibrate
from supernet.heatdetr.supernet import Supernet
from supernet.network import AnyArchitecture
from supernet.train.shown import augment_of, shown_in_training
from supernet.train.threads import sparing

from ..records import Result
from ..thinning.source import Source, elastic_members
from ..thinning.thinned import Thinned
from ..workspace import Workspace

SOURCE = "elastic supernet"
RECALIBRATED_ON = 400
"""Images that BatchNorm is recalibrated on."""
FINETUNE_SHARE = 0.1
"""Epochs of fine-tuning, as a share of the elastic supernet's."""
FINETUNE_RATE = 2e-4
"""Peak learning rate of fine-tuning, a fifth of the recipe's."""


def write_inherited(
    workspace: Workspace,
    source: Source,
    thinned: Thinned,
    architecture: Architecture,
    data: DetectionSet | None,
) -> Result:
    """Write the weights of the thinned network; return what is known of them.

    BatchNorm is recalibrated on training images, AP measured on the val split where there is one.
    Where the supernet is not elastic, weights of an earlier thinning are removed.
    """
    if source.supernet is None or not source.supernet.elastic or data is None:
        workspace.inherited.unlink(missing_ok=True)
        return {}
    network = inherit(source.supernet, architecture, thinned.positions)
    trained = read_info(workspace.elastic / WEIGHTS)
    recalibrate(network, images_for(data, architecture.input_size, augment_of(trained)))
    warn_if_smaller(workspace, source.supernet, architecture)
    facts: dict[str, object] = {
        "inherited": SOURCE,
        "supernet": source.digest,
        "data": data.root.name,
        "images": trained.facts["images"],
        "recalibrated_on": RECALIBRATED_ON,
        "history": [],
    }
    if find_split(data.root, "val") is not None:
        val = load_split(data.root, "val").numbered_as(trained.names)
        with sparing():
            metrics = evaluate(torch_detect(network), val)
        facts |= {"ap": known(metrics.ap), "ap50": known(metrics.ap50), "ap_on": "val"}
    info = CheckpointInfo(
        kind="detector",
        description=architecture.to_json(),
        names=trained.names,
        epoch=trained.epoch,
        epochs=trained.epochs,
        facts=facts,
    )
    save_checkpoint(workspace.inherited, network.state_dict(), info)
    ap = facts.get("ap")
    scored = f", AP {100 * ap:.1f} on val" if isinstance(ap, float) else ""
    print(f"weights: inherited from the elastic supernet{scored}", file=sys.stderr)
    return {"weights": str(workspace.inherited), "ap": ap, "inherited": SOURCE}


def warn_if_smaller(workspace: Workspace, supernet: Supernet, architecture: Architecture) -> None:
    """Print a warning where no network as small as this one was trained."""
    template = supernet.space.template
    trained = elastic_members(workspace.elastic / WEIGHTS, template)
    least = min(count_macs(member.architecture).total for member in trained) / 1e6
    own = count_macs(architecture.with_(input_size=template.input_size)).total / 1e6
    if own < least:
        print(
            f"warning: the smallest network that was trained has {least:.0f} million multiply-adds,"
            f" this one {own:.0f}: heat train --finetune trains it; heat supernet --elastic "
            "--restart with --targets trains all of them",
            file=sys.stderr,
        )


def images_for(
    data: DetectionSet, input_hw: tuple[int, int], augment: AugmentConfig
) -> Iterator[Tensor]:
    """Return the batches that BatchNorm is recalibrated on, as a training showed them."""
    return shown_in_training(data, input_hw, augment, RECALIBRATED_ON)


def inherited_of(workspace: Workspace, architecture: Architecture) -> Path | None:
    """Return the file of a thinned network's inherited weights; None where it has none.

    Weights of an elastic supernet that was trained again since are none.
    """
    path = workspace.inherited
    if not path.exists():
        return None
    info = read_info(path)
    elastic = workspace.elastic / WEIGHTS
    if Architecture.from_json(info.description) != architecture:
        return None
    if elastic.exists() and file_digest(elastic) != info.facts.get("supernet"):
        return None
    return path


def finetune_epochs(workspace: Workspace, architecture: AnyArchitecture) -> int:
    """Return how long inherited weights are fine-tuned; `UserError` where there are none."""
    path = inherited_of(workspace, architecture) if architecture.family == "heatdetr" else None
    if path is None:
        raise UserError(
            f"--finetune trains what an elastic supernet handed on, and {workspace.inherited} "
            "has no weights of this network: heat supernet --elastic, then heat thin"
        )
    return max(1, round(FINETUNE_SHARE * read_info(path).epochs))
