"""Finds and opens latency tables: a workspace's own, and those that HEAT ships."""

import sys
from dataclasses import asdict
from pathlib import Path

from deploy.edge.session import runtime_version
from supernet.errors import TableError

from .conditions import Conditions, stem_of
from .devices import Target
from .table import ESTIMATED, LatencyTable
from .table_file import read_table

SHIPPED = Path(__file__).parent
"""Tables that come with HEAT: one measured machine, and estimates."""


def conditions_of(target: Target, input_size: tuple[int, int]) -> Conditions:
    """Return the conditions under which this machine measures now."""
    version = runtime_version(target.runtime)
    return Conditions.of(
        target.name, target.detected, target.gpu, target.setting, version, input_size
    )


def open_table(
    folder: Path, target: Target, input_size: tuple[int, int], *, trust: bool = False
) -> LatencyTable:
    """Return the stored table of these conditions, or an empty one.

    Raises `TableError` where the stored one is broken, or was measured under other conditions and
    is not trusted. A trusted table may also be one that HEAT ships.
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
        if trust:
            different = conditions.differences(table.conditions)
            if different:
                print(f"warning: trusting {path} in spite of {different}", file=sys.stderr)
        else:
            table.require(conditions)
    return table


def find_table(
    folder: Path, target: Target, input_size: tuple[int, int], *, trust: bool = False
) -> Path | None:
    """Return where a target's table lies: in the folder.

    Trusted are also an estimate there, and the tables that HEAT ships, in this order.
    """
    stem = stem_of(target.name, target.setting, input_size)
    names = [f"{stem}.csv", f"{stem}{ESTIMATED}.csv"] if trust else [f"{stem}.csv"]
    places = [folder, SHIPPED] if trust else [folder]
    paths = [place / name for place in places for name in names]
    return next((path for path in paths if path.exists()), None)


def empty_table(target: Target, input_size: tuple[int, int]) -> LatencyTable:
    """Return a table without rows for this machine."""
    facts = {"detected": asdict(target.detected)}
    if target.gpu:
        facts["gpu"] = asdict(target.gpu)
    return LatencyTable(conditions_of(target, input_size), facts=facts)
