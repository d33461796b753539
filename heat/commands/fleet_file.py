"""Reads a fleet file: one supernet serves a fleet, a network for each of its devices."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast, get_args

from latency_tables.device_file import find_device
from supernet.errors import DeviceError, TableError, UserError, did_you_mean
from supernet.heatdetr.input_size import parse_size

from ..thinning.limits import DEFAULT_PERCENTILE, Limits, Percentile
from ..workspace import Workspace
from .candidates import device_parts, find_candidates, precisions, sizes_between
from .options import RuntimeName

if TYPE_CHECKING:
    from supernet.heatdetr.supernet import SearchSpace

    from ..thinning.candidates import Candidate, Wanted

LIMITS = ("target_fps", "max_latency_ms", "percentile", "max_memory_mb", "max_size_mb")
WHERE = ("device", "runtime", "precision", "threads", "input_size", "trust_table")
NUMBERS = ("target_fps", "max_latency_ms", "max_memory_mb", "max_size_mb")
KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    **{name: ((int, float), "a number, without quotes") for name in NUMBERS},
    "threads": ((int,), "a whole number, without quotes"),
    "trust_table": ((bool,), "true or false"),
    **{name: ((str,), "a text in quotes") for name in ("device", "input_size", "percentile")},
    **{name: ((str,), "a text in quotes") for name in ("runtime", "precision")},
}
"""What each key must be."""
CHOICES: dict[str, tuple[str, ...]] = {
    "percentile": get_args(Percentile),
    "runtime": get_args(RuntimeName),
}
LONGEST_NAME = 100


class MemberTable(TypedDict, total=False):
    """The table of one network in a fleet file."""

    device: str
    runtime: str
    precision: str
    threads: int
    input_size: str
    trust_table: bool
    target_fps: float
    max_latency_ms: float
    percentile: Percentile
    max_memory_mb: float
    max_size_mb: float


def read_fleet(path: Path) -> dict[str, MemberTable]:
    """Read the tables of a fleet file: a name each, a device, and at least one limit of speed."""
    try:
        fleet = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {error}") from None
    if not fleet or not all(isinstance(values, dict) for values in fleet.values()):
        raise UserError(
            f'{path} needs a table for each network, as: [camera] device = "cpu" target_fps = 24'
        )
    for name, values in fleet.items():
        unknown = sorted(set(values) - {*LIMITS, *WHERE})
        if unknown:
            known = ", ".join((*WHERE, *LIMITS))
            near = did_you_mean(unknown[0], (*WHERE, *LIMITS))
            raise UserError(f"{path} [{name}]: unknown {unknown[0]!r}{near}, known are {known}")
        _check_member(f"{path} [{name}]", name, values)
    return cast(dict[str, MemberTable], fleet)


def _check_member(where: str, name: str, values: Mapping[str, object]) -> None:
    """Refuse a name that is no folder's, and values of another kind than their key's."""
    folder = name.strip() == name and Path(name).name == name and len(name) <= LONGEST_NAME
    if not folder or name in ("", ".", "..") or "\\" in name or not name.isprintable():
        raise UserError(f"{where}: a network's name is that of its folder, without / and \\")
    for key, value in values.items():
        kinds, text = KINDS[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise UserError(f"{where}: {key} = {value!r}: {text} is needed")
        if key in CHOICES and value not in CHOICES[key]:
            raise UserError(f"{where}: {key} = {value!r}: one of {', '.join(CHOICES[key])}")
    table = cast(MemberTable, values)
    try:
        _limits(table)
        size = table.get("input_size")
        if size is not None:
            sizes_between(size, (1, 1)) if ".." in size else parse_size(size)
        if table.get("threads", 1) < 1:
            raise UserError(f"threads = {table['threads']}: at least 1 is needed")
        precisions(table.get("precision"))
        device, *_ = device_parts(table.get("device"), table.get("runtime"), None, None)
        if device is not None:
            find_device(device)
    except OverflowError:
        raise UserError(f"{where}: a number is too large") from None
    except (UserError, DeviceError) as error:
        raise UserError(f"{where}: {error}") from None


def _limits(values: MemberTable) -> Limits:
    return Limits(
        target_fps=values.get("target_fps"),
        max_latency_ms=values.get("max_latency_ms"),
        percentile=values.get("percentile", DEFAULT_PERCENTILE),
        max_memory_mb=values.get("max_memory_mb"),
        max_size_mb=values.get("max_size_mb"),
    )


def _refuse_unexported(candidates: "Sequence[Candidate]") -> None:
    """Raise `UserError` for a runtime that no bundle is for, and for a GPU's that is on its CPU."""
    from deploy.form import FORMAT_OF

    for target in (target for candidate in candidates for target in candidate.targets):
        on_gpu = target.device.kind == "cuda"
        known = ("tensorrt",) if on_gpu else tuple(FORMAT_OF)
        if target.runtime not in known:
            where = " on a GPU" if on_gpu else ""
            raise UserError(
                f"runtime = {target.runtime!r}: no bundle runs in it{where}: one of "
                f"{', '.join(known)}"
            )


def _check_tables(workspace: Workspace, candidate: "Candidate", trust: bool) -> None:
    """Raise `TableError` where the table of a device that is not here has no rows of the space."""
    from latency_tables.store import open_table

    template = candidate.space.template
    for target in candidate.targets:
        if not target.here:
            table = open_table(workspace.tables, target, template.input_size, trust=trust)
            table.sum_ms(template.with_(global_block="cw"))


def find_members(
    workspace: Workspace, path: Path, *, space: "str | SearchSpace | None", data: Path | None
) -> "dict[str, Wanted]":
    """Return what each network of a fleet file is to be; every request is checked.

    Networks are of the `space` given, or of that of the workspace's supernet.
    """
    from ..thinning.candidates import Wanted
    from ..thinning.ceiling import refuse_impossible

    members: dict[str, Wanted] = {}
    for name, values in read_fleet(path).items():
        trust = bool(values.get("trust_table", False))
        try:
            candidates, found = find_candidates(
                workspace,
                _limits(values),
                devices=[values["device"]] if "device" in values else [],
                runtime=values.get("runtime"),
                threads=values.get("threads"),
                precision=values.get("precision"),
                space=space,
                input_size=values.get("input_size"),
                data=data,
                trust=trust,
            )
            refuse_impossible(candidates)
            _refuse_unexported(candidates)
            for candidate in candidates:
                _check_tables(workspace, candidate, trust)
        except (DeviceError, TableError, UserError) as error:
            raise UserError(f"{path} [{name}]: {error}") from None
        members[name] = Wanted(candidates, found, trust)
    return members
