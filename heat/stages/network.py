"""The network of a workspace that is exported or evaluated: the trained one, or the thinned one."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from supernet.checkpoint import WEIGHTS, CheckpointInfo, load_weights, read_info
from supernet.errors import UserError
from supernet.heatdetr.architecture import Architecture
from supernet.network import AnyArchitecture, Network, build, read_architecture
from supernet.train.run_files import BEST

from ..records import Result
from ..workspace import Workspace
from .inherited import inherited_of

Which = Literal["trained", "best", "thinned"]
"""The trained network after the last epoch, or after the epoch of the highest AP on val; or the
thinned one, where another is trained."""
Change = Callable[[AnyArchitecture], AnyArchitecture]
"""Makes another architecture of one, with the same weights."""


class Loaded(NamedTuple):
    """The network of a workspace."""

    network: Network
    names: list[str]
    """Its class names."""
    training: Result | None
    """How it was trained; None where it is not."""
    weights: Path | None
    """The file of its weights."""


def as_it_is(architecture: AnyArchitecture) -> AnyArchitecture:
    """Change nothing."""
    return architecture


def is_thinned(architecture: AnyArchitecture, thinned: Architecture) -> bool:
    """Say whether a network is the thinned one; training decides the number of classes."""
    return thinned.with_(num_classes=architecture.num_classes) == architecture


def load_network(
    workspace: Workspace, change: Change = as_it_is, which: Which | None = None
) -> Loaded:
    """Return a workspace's network.

    The thinned network has weights without a training of its own where an elastic supernet handed
    them on. Raises `UserError` where another network is trained than the thinned one, unless
    `which` says which of them is meant.
    """
    asked_trained = which in ("trained", "best")
    path = workspace.train / (BEST if which == "best" else WEIGHTS)
    thinned = Architecture.load(workspace.architecture) if workspace.architecture.exists() else None
    info = read_info(path) if path.exists() else None
    if info is None and asked_trained:
        scored = " --eval-every 10, with a val split," if which == "best" else ""
        raise UserError(f"--network {which}: there is no {path}: heat train{scored} makes it")
    if thinned is None and (info is None or which == "thinned"):
        workspace.need("thin", "heat thin --target-fps FPS")
        thinned = Architecture.load(workspace.architecture)  # names the file that is gone
    inherited = inherited_of(workspace, thinned) if thinned is not None else None
    if info is not None:
        architecture = read_architecture(info.description, str(path))
        differs = thinned is not None and not is_thinned(architecture, thinned)
        if differs and which is None and inherited is None:
            raise UserError(
                f"{path} is not of the thinned network but of another ({architecture.name}): "
                "--network trained takes the one that is trained, --network thinned the thinned "
                "one without training; heat train --restart trains the thinned one"
            )
        newest = inherited is None or (which is None and _trained_since(workspace, info))
        if asked_trained or (newest and not differs):
            if which == "best":
                print(
                    f"{path}: epoch {info.epoch} of {info.epochs}, the best on val, whose AP is "
                    "therefore too high to expect of other images",
                    file=sys.stderr,
                )
            elif not info.finished:
                print(
                    f"warning: training ended at epoch {info.epoch} of {info.epochs} "
                    "(heat train --resume goes on)",
                    file=sys.stderr,
                )
            return _loaded(path, change(architecture))
        if which is None and not differs:
            print(
                f"warning: {path} is no finished training of this thinning: the weights that it "
                "inherited are taken (--network trained takes the others)",
                file=sys.stderr,
            )
    assert thinned is not None
    if inherited is not None:
        return _loaded(inherited, change(thinned))
    torch.manual_seed(0)
    names = [f"class_{index}" for index in range(thinned.num_classes)]
    return Loaded(build(change(thinned)).eval(), names, None, None)


def _trained_since(workspace: Workspace, info: CheckpointInfo) -> bool:
    """Return whether a training was finished after the last thinning."""
    return info.finished and workspace.finished("train") >= workspace.finished("thin")


def _loaded(path: Path, architecture: AnyArchitecture) -> Loaded:
    """Return a network with the weights of a file."""
    network = build(architecture)
    info = load_weights(path, network)
    facts = {"epoch": info.epoch, "epochs": info.epochs, **info.facts}
    facts.pop("history", None)
    return Loaded(network.eval(), list(info.names), facts, path)
