"""The latency tables of a workspace: their files, and how fast the machine was meanwhile."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from latency_tables.conditions import Conditions
from latency_tables.devices import Target
from latency_tables.pricing import SUSTAINED, weighted_quantile
from latency_tables.store import conditions_of, empty_table, open_table
from latency_tables.table import ESTIMATED, LatencyTable
from latency_tables.table_file import read_table
from supernet.atomic import remove_remains
from supernet.errors import TableError

from .workspace import Workspace


def table_path(workspace: Workspace, table: LatencyTable) -> Path:
    """Return the file of a table."""
    return workspace.tables / f"{table.name}.csv"


def recorded_table(workspace: Workspace, path: str) -> LatencyTable:
    """Return the table a stage names; the workspace may have moved, or the table be HEAT's own."""
    moved = workspace.tables / Path(path).name
    return read_table(moved if moved.exists() else Path(path))


def open_for_writing(
    workspace: Workspace, target: Target, input_size: tuple[int, int], locks: ExitStack
) -> LatencyTable:
    """Return the table that exists, for this process alone."""
    locks.enter_context(table_lock(workspace, conditions_of(target, input_size)))
    return existing_table(workspace, target, input_size)


@contextmanager
def table_lock(workspace: Workspace, conditions: Conditions) -> Iterator[None]:
    """Hold the table of some conditions, and its estimate, for this process alone.

    To be entered before the table is read: what another process adds in between would be lost.
    """
    names = [conditions.stem, f"{conditions.stem}{ESTIMATED}"]
    csv, *others = (workspace.tables / f"{n}{end}" for n in names for end in (".csv", ".json"))
    with workspace.claimed(csv):
        for path in others:
            remove_remains(path)
        yield


def existing_table(
    workspace: Workspace, target: Target, input_size: tuple[int, int]
) -> LatencyTable:
    """Return the table that exists; a broken or stale one is replaced by a new one."""
    try:
        return open_table(workspace.tables, target, input_size)
    except TableError as error:
        print(f"warning: {error}: it is measured again", file=sys.stderr)
        return empty_table(target, input_size)


def speeds(table: LatencyTable) -> tuple[float, float]:
    """Return milliseconds of the reference network at best and sustained (p10 and p90)."""
    found = [moment for moment in table.history if moment.state]
    if not found:
        return table.reference_ms, table.reference_ms
    times = np.array([moment.state[0] for moment in found])
    seconds = np.array([moment.seconds for moment in found])
    best, sustained = (weighted_quantile(times, seconds, q) for q in (1 - SUSTAINED, SUSTAINED))
    return best, sustained
