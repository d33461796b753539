"""Finds the candidates that `heat thin` may choose from: input sizes, precisions, devices."""

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from supernet.errors import UserError, did_you_mean
from supernet.heatdetr.input_size import parse_size

from ..workspace import Workspace
from .find import find_data, find_space, thin_target
from .options import PrecisionName, RuntimeName

if TYPE_CHECKING:
    from supernet.data.detection_set import DetectionSet
    from supernet.heatdetr.supernet import SearchSpace

    from ..thinning.candidates import Candidate
    from ..thinning.limits import Limits

STEP_PX = 64
"""Between the sizes of a range."""
MULTIPLE_PX = 32


def find_candidates(
    workspace: Workspace,
    limits: "Limits",
    *,
    devices: list[str],
    runtime: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    space: "str | SearchSpace | None" = None,
    input_size: str | None = None,
    data: Path | None = None,
    trust: bool = False,
) -> tuple[list["Candidate"], "DetectionSet | None"]:
    """Return every combination of the sizes and precisions asked for, and the data."""
    from ..thinning.candidates import Candidate

    trained = workspace.stages().get("supernet")
    data = data or (Path(trained["data"]) if trained else None)
    found = find_data(workspace, data, "train") if data is not None else None
    classes = found.num_classes if found is not None else None
    a_range = input_size is not None and ".." in input_size
    asked_size = None if a_range else input_size
    if space is None or isinstance(space, str):
        space = find_space(workspace, space, asked_size, classes, stages=("supernet", "profile"))
    elif asked_size is not None:
        space = replace(space, template=space.template.with_(input_size=parse_size(asked_size)))
    own = space.template.input_size
    sizes = sizes_between(str(input_size), own) if a_range else [own]
    candidates = []
    for size in sizes:
        for name in precisions(precision):
            asked = [device_parts(text, runtime, threads, name) for text in devices or (None,)]
            targets = tuple(thin_target(workspace, *parts, size, trust=trust) for parts in asked)
            at_size = replace(space, template=space.template.with_(input_size=size))
            candidates.append(Candidate(at_size, targets, (limits,) * len(targets)))
    return candidates, found


def precisions(text: str | None) -> list[str | None]:
    """Read `bf16` or `f32,bf16`."""
    names: list[str | None] = [*text.split(",")] if text else [None]
    known = get_args(PrecisionName)
    for name in names:
        if name is not None and name not in known:
            near = did_you_mean(name, known)
            raise UserError(f"--precision {text}: {name!r}{near} is none of {', '.join(known)}")
    return names


def sizes_between(text: str, own: tuple[int, int]) -> list[tuple[int, int]]:
    """Read `320..640`: longer sides in steps of 64, the other side in the space's proportion."""
    first, _, last = text.partition("..")
    if ".." in last:
        raise UserError(f"--input-size {text}: two sides, as 320..640")
    for asked in (first, last):
        if "x" in asked.lower():
            raise UserError(
                f"--input-size {text}: {asked} has two sides, give the longer: 320..640"
            )
    low, high = max(parse_size(first)), max(parse_size(last))
    if low > high:
        raise UserError(f"--input-size {text}: the first side must be the smaller one")
    sizes = []
    for side in range(low, high + 1, STEP_PX):
        height, width = (
            max(MULTIPLE_PX, math.floor(side * edge / max(own) / MULTIPLE_PX + 0.5) * MULTIPLE_PX)
            for edge in own
        )
        sizes.append((height, width))
    return sizes


def device_parts(
    text: str | None, runtime: str | None, threads: int | None, precision: str | None
) -> tuple[str | None, str | None, int | None, str | None]:
    """Read `NAME`, `NAME:RUNTIME` or `NAME:RUNTIME:PRECISION`."""
    name, *rest = (text or "").split(":")
    if len(rest) > 2:
        raise UserError(f"--device {text}: NAME:RUNTIME:PRECISION at most")
    own = [*rest, "", ""]
    for value, known in zip(own, (get_args(RuntimeName), get_args(PrecisionName)), strict=False):
        if value and value not in known:
            near = did_you_mean(value, known)
            raise UserError(f"--device {text}: {value!r}{near} is none of {', '.join(known)}")
    return name or None, own[0] or runtime, threads, own[1] or precision
