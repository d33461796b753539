"""Fills the latency table that a search needs, and brings its states of the machine up to date."""

import sys
from dataclasses import replace

import numpy as np

from latency_tables.families import family
from latency_tables.meter import DeviceMeter, Meter
from latency_tables.plan import Checks, check_networks, space_entries
from latency_tables.profile import absorb, calibrate, fill
from latency_tables.table import LatencyTable
from latency_tables.table_file import write_table
from supernet.heatdetr.supernet import SearchSpace

from ..tables import speeds
from ..workspace import Workspace
from .aims import aims
from .moves import Logits

WATCH_S = 8.0
"""Seconds that the machine's state is watched for before a table made earlier is used."""
REWATCH_S = 40.0
"""Seconds where that state is none of those that the table has seen."""
STATE_ROOM = 1.05
"""Share by which the state may lie outside the table's tenth and nine tenths."""


def lacks(table: LatencyTable, space: SearchSpace, checks: Checks) -> bool:
    """Say whether a table needs timings for a space: too few networks, or families without any.

    Thinning makes tables with fewer networks than `heat profile`; another space may have operators
    that none of the table's samples is of.
    """
    networks = {network.architecture for network in table.networks}
    checked_before = table.calibration.checks and not networks  # a table of 0.1.0
    if len(networks) < checks.networks and not checked_before:
        return True
    sampled = {family(sample.entry) for sample in table.samples}
    entries = space_entries(space.template, space.widths, oa=True)
    return any(family(entry) not in sampled for entry in entries)


def measure_table(
    workspace: Workspace,
    table: LatencyTable,
    space: SearchSpace,
    logits: Logits,
    checks: Checks,
    meter: Meter | None = None,
) -> None:
    """Time entries and whole networks of a space, those on the way of thinning first."""
    meter = meter or DeviceMeter(table.conditions)

    def save() -> object:
        return write_table(table, workspace.tables)

    entries = space_entries(space.template, space.widths, oa=True)
    fill(table, entries, meter, aims(space, logits), checks=checks, save=save)
    networks = check_networks(space.template, space.widths, space.positions, checks.networks)
    known = {network.architecture for network in table.networks}
    if len(known) < checks.networks or (checks.memory and table.memory is None):
        calibrate(table, networks, meter, checks=checks, save=save)


def refresh(workspace: Workspace, table: LatencyTable) -> None:
    """Watch what state the machine is in; where it is another than the table's, forget that.

    What a machine sustains today need not be what it did when it was profiled.
    """
    if not table.history:
        return
    meter = DeviceMeter(table.conditions)
    taken = meter.watch(WATCH_S)
    now = float(np.median([moment.state[0] for moment in taken.moments]))
    best, sustained = speeds(table)
    if not best / STATE_ROOM <= now <= sustained * STATE_ROOM:
        print(
            f"the machine runs its reference network in {now:.1f} ms, where it took {best:.1f} to "
            f"{sustained:.1f} ms when the table was measured: watching it for {REWATCH_S:.0f} s",
            file=sys.stderr,
        )
        # What was seen before counts no more than what is seen now.
        seen = sum(moment.seconds for moment in table.history)
        share = min(1.0, (REWATCH_S + WATCH_S) / max(seen, 1e-9))
        table.history = [replace(m, seconds=m.seconds * share) for m in table.history]
        absorb(table, meter.watch(REWATCH_S))
    absorb(table, taken)
    write_table(table, workspace.tables)
