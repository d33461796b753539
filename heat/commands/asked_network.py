"""The architecture that a command is asked for: a name or a file, and what options change of it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..workspace import Workspace

if TYPE_CHECKING:
    from supernet.detr.family import EncoderAttention
    from supernet.heatdetr.architecture import Architecture, BoxKind, HeadKind, NMSHead
    from supernet.network import AnyArchitecture


def find_heatdetr(name: str) -> "Architecture":
    """Return a HeatDETR by its name or file."""
    from supernet.errors import UserError
    from supernet.network import find_architecture

    found = find_architecture(name)
    if found.family != "heatdetr":
        raise UserError(f"--architecture {name}: a HeatDETR is needed here, not {found.family}")
    return found


def attending(
    architecture: "AnyArchitecture",
    attention: "EncoderAttention | None" = None,
    rounds: int | None = None,
    window: int | None = None,
    clusters: int | None = None,
) -> "AnyArchitecture":
    """Return an architecture with other attention in its encoder, where that is asked for."""
    from supernet.errors import UserError

    asked = {"attention": attention, "rounds": rounds, "window": window, "clusters": clusters}
    changes = {key: value for key, value in asked.items() if value is not None}
    if changes and architecture.family == "heatdetr":
        raise UserError(
            f"--{next(iter(changes))}: {architecture.name} is no DETR; a HeatDETR's attention is "
            "its global block, in architecture.json"
        )
    return architecture.with_(**changes)


def deployed_as(
    architecture: "AnyArchitecture",
    head: "NMSHead | None" = None,
    attention: "EncoderAttention | None" = None,
    rounds: int | None = None,
    window: int | None = None,
    clusters: int | None = None,
) -> "AnyArchitecture":
    """Return an architecture with what the same weights can be deployed with, where asked for."""
    from supernet.errors import UserError

    if head is not None:
        if architecture.family != "heatdetr":
            raise UserError(f"--head {head}: of HeatDETR, not of {architecture.family}")
        if architecture.head == "one-to-one":
            raise UserError(
                f"--head {head}: {architecture.name} was trained one-to-one: "
                f"heat train --head {head} trains another"
            )
        architecture = architecture.with_(head=head)
    return attending(architecture, attention, rounds, window, clusters)


class Ending(NamedTuple):
    """How networks of a build or a fleet end."""

    head: "HeadKind"
    boxes: "BoxKind"


def ending_of(
    workspace: Workspace,
    stages: Sequence[Literal["plan", "supernet", "supernet-plan"]],
    head: "HeadKind | None",
    boxes: "BoxKind | None",
) -> Ending:
    """Return what is asked for, or what the first of the stages has, or else the most accurate."""
    from supernet.heatdetr.supernet import SearchSpace

    begun = Ending("voted", "distributions")
    recorded = workspace.stages()
    spaces = [recorded[stage]["space"] for stage in stages if "space" in recorded.get(stage, {})]
    if spaces:
        template = SearchSpace.from_dict(spaces[0], "run.json").template
        begun = Ending(template.head, template.boxes)
    return Ending(head or begun.head, boxes or begun.boxes)


def ending_in(
    architecture: "Architecture",
    output_stride: str | None,
    head: "HeadKind | None" = None,
    boxes: "BoxKind | None" = None,
) -> "Architecture":
    """Return an architecture with another output stride, head and boxes, where asked for."""
    if output_stride is not None:
        architecture = architecture.with_stride(int(output_stride))
    if head is not None:
        architecture = architecture.with_(head=head)
    return architecture if boxes is None else architecture.with_(boxes=boxes)
