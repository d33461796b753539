"""What a search thins: a trained supernet, or the prior where none is trained."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from latency_tables.devices import Target
from supernet.checkpoint import WEIGHTS, file_digest, load_weights, read_info
from supernet.data.augment import AugmentConfig
from supernet.errors import CheckpointError, UserError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.elastic import Member
from supernet.heatdetr.supernet import SearchSpace, Supernet
from supernet.train.shown import augment_of

from ..workspace import Workspace
from .moves import Logits, prior_logits


@dataclass(frozen=True, slots=True)
class Source:
    """What the moves are ranked by: a trained supernet, or the prior without one."""

    supernet: Supernet | None
    logits: Logits
    digest: str
    """Of the supernet's weights."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """How the supernet was shown images in training."""
    names: tuple[str, ...] = ()
    """Classes of the supernet, in the order of its head."""
    images: int | None = None
    """Images that the supernet was trained on, where that is known."""

    @property
    def name(self) -> str:
        """What the result calls it."""
        return "supernet" if self.supernet is not None else "prior (no supernet trained)"


def with_global_block(supernet: Supernet, targets: Sequence[Target]) -> SearchSpace:
    """Return the supernet's space with its global block decided: cw on CPUs (spec section 7).

    One CPU among several devices suffices.
    """
    if not supernet.space.global_choice:
        return supernet.space
    on_cpu = any(target.device.kind == "cpu" for target in targets)
    kind = "cw" if on_cpu else supernet.best_global_block()
    template = supernet.space.template.with_(global_block=kind)
    return replace(supernet.space, template=template, global_choice=False)


def check_fits(supernet: Supernet, space: SearchSpace, workspace: Workspace) -> None:
    """Refuse to thin a supernet that was trained for something else than was asked for."""
    own, asked = supernet.space.template, space.template
    for what, mine, wanted in (
        ("number of classes", own.num_classes, asked.num_classes),
        ("widths", own.widths, asked.widths),
        ("output stride", own.output_stride, asked.output_stride),
        ("boxes", own.boxes, asked.boxes),
        ("one-to-one head", own.head == "one-to-one", asked.head == "one-to-one"),
    ):
        if mine != wanted:
            raise UserError(
                f"the supernet in {workspace.supernet} has {what} {mine}, asked for is {wanted}: "
                "use the data and options it was trained with, or another --out"
            )


def load_source(workspace: Workspace, space: SearchSpace, *, elastic: bool = True) -> Source:
    """Return the workspace's supernet and its logits, or the prior's where none is trained.

    An elastic supernet comes before the one that it was made of, unless that is asked for.
    """
    supernet = (load_elastic(workspace) if elastic else None) or load_supernet(workspace)
    if supernet is None:
        return Source(None, prior_logits(space), "")
    logits = supernet.logits()
    bad = [place for place, r in logits.items() if not all(map(math.isfinite, r))]
    if bad:
        raise UserError(
            f"the supernet in {workspace.supernet} has r that is not finite at stage "
            f"{bad[0][0]} position {bad[0][1]}: heat supernet --restart with a lower "
            "--logit-learning-rate"
        )
    path = (workspace.elastic if supernet.elastic else workspace.supernet) / WEIGHTS
    info = read_info(path)
    images = info.facts.get("images")
    return Source(
        supernet,
        logits,
        file_digest(path),
        augment_of(info),
        info.names,
        images if isinstance(images, int) else None,
    )


def load_supernet(workspace: Workspace) -> Supernet | None:
    """Return the workspace's supernet; of one that is not trained to its end it warns."""
    return _load(workspace.supernet / WEIGHTS, "the supernet", "heat supernet --resume")


def load_elastic(workspace: Workspace) -> Supernet | None:
    """Return the workspace's elastic supernet; one of another supernet is passed over."""
    path = workspace.elastic / WEIGHTS
    if not path.exists():
        return None
    origin = elastic_facts(path)["supernet"]
    own = workspace.supernet / WEIGHTS
    if own.exists() and file_digest(own) != origin:
        print(
            f"warning: {path} was made of another supernet than {own} and is not used "
            "(heat supernet --elastic --restart makes it again)",
            file=sys.stderr,
        )
        return None
    supernet = _load(path, "the elastic supernet", "heat supernet --elastic --resume")
    if supernet is not None:
        supernet.elastic = True
    return supernet


def elastic_facts(path: Path) -> Mapping[str, Any]:
    """Return what the checkpoint of an elastic supernet records of its networks.

    Raises `CheckpointError` where it is of no elastic supernet.
    """
    found = read_info(path).facts.get("elastic")
    if not isinstance(found, Mapping) or "supernet" not in found:
        raise CheckpointError(f"{path} was not trained elastic: run heat supernet --elastic")
    return found


def elastic_members(path: Path, template: Architecture) -> list[Member]:
    """Return the networks that were trained together in an elastic supernet.

    Raises `CheckpointError` where the checkpoint does not record them.
    """
    try:
        networks = elastic_facts(path)["networks"]
        if not networks:
            raise ValueError("no network")
        return [Member.from_dict(values, template) for values in networks]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} does not record its networks ({error}): heat supernet --elastic --restart "
            "trains it again"
        ) from None


def _load(path: Path, what: str, command: str) -> Supernet | None:
    if not path.exists():
        return None
    info = read_info(path)
    if not info.finished:
        print(
            f"warning: {what} was trained to epoch {info.epoch} of {info.epochs} "
            f"({command} goes on)",
            file=sys.stderr,
        )
    supernet = Supernet(SearchSpace.from_json(info.description, str(path)))
    load_weights(path, supernet)
    return supernet.eval()
