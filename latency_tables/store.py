"""Finds and opens latency tables: those of a workspace and those that HEAT ships."""

import sys
from dataclasses import replace
from pathlib import Path

from deploy.edge.session import runtime_version
from supernet.errors import TableError
from supernet.graph.style import FORMS_VERSION

from .conditions import Conditions, stem_of
from .devices import Target, names_of
from .sidecar import Facts
from .table import ESTIMATED, LatencyTable
from .table_file import read_table

SHIPPED = Path(__file__).parent
"""Folder of the tables that HEAT ships: one measured machine, and estimates."""


def conditions_of(target: Target, input_size: tuple[int, int]) -> Conditions:
    """Return the conditions under which this machine measures now."""
    version = runtime_version(target.runtime)
    return Conditions.of(
        target.name, target.detected, target.gpu, target.setting, version, input_size
    )


def open_table(
    folder: Path, target: Target, input_size: tuple[int, int], *, trust: bool = False
) -> LatencyTable:
    """Return the stored table of a target, or an empty one.

    With `trust`, the table may have been measured under other conditions, and be one of those that
    HEAT ships: it is borrowed then, for the conditions of now. Raises `TableError` for a broken
    table, for one of other conditions without `trust`, and for a target that has none and is not
    this machine.
    """
    path = find_table(folder, target, input_size, trust=trust)
    if path is None and not target.here:
        stem = stem_of(target.name, target.setting, input_size)
        raise TableError(
            f"no table {stem}.csv in {folder}: heat profile --device {target.name} --estimate, "
            "--host or --unpack makes one"
        )
    if path is None:
        return empty_table(target, input_size)
    table = read_table(path)
    if target.here:
        conditions = conditions_of(target, input_size)
    else:  # what it was measured under is known from itself only, but for the graphs of now
        conditions = replace(table.conditions, forms=FORMS_VERSION)
    if not trust:
        table.require(conditions)
        return table
    different = conditions.differences(table.conditions)
    if different:
        print(f"warning: trusting {path} in spite of {different}", file=sys.stderr)
        table.conditions, table.borrowed = conditions, True
    return table


def find_table(
    folder: Path, target: Target, input_size: tuple[int, int], *, trust: bool = False
) -> Path | None:
    """Return the path of a target's table in the folder, or None.

    With `trust`, an estimate in the folder and then the tables that HEAT ships are tried too, also
    by the other names of this CPU.
    """
    devices, ends = ([target.name], [""]) if not trust else (names_of(target), ["", ESTIMATED])
    stems = [stem_of(device, target.setting, input_size) for device in devices]
    names = [f"{stem}{end}.csv" for stem in stems for end in ends]
    places = [folder, SHIPPED] if trust else [folder]
    paths = [place / name for place in places for name in names]
    return next((path for path in paths if path.exists()), None)


def empty_table(target: Target, input_size: tuple[int, int]) -> LatencyTable:
    """Return a table without rows for this machine."""
    facts: Facts = {"detected": target.detected.to_json()}
    if target.gpu:
        facts["gpu"] = target.gpu.to_json()
    return LatencyTable(conditions_of(target, input_size), facts=facts)
