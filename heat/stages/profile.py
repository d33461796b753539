"""`heat profile`: a device's latency table, measured on this machine."""

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from latency_tables.devices import Target
from latency_tables.drift import SAME_STATE
from latency_tables.lock import only_one
from latency_tables.plan import Checks, space_entries
from latency_tables.profile import calibrate, fill, open_bench
from latency_tables.store import empty_table, open_table
from latency_tables.table import LatencyTable
from supernet.errors import TableError
from supernet.supernet import SearchSpace

from ..workspace import Workspace


def profile(workspace: Workspace, target: Target, space: SearchSpace) -> dict[str, Any]:
    """Measure every entry of the space that the table lacks, then calibrate the table."""
    started = time.monotonic()
    warn(target)
    table = standing_table(workspace, target, space.template.input_size)
    with only_one(table_path(workspace, table)):
        every = space_entries(space.template, space.widths, oa=True)
        todo = [entry for entry in every if entry not in table.rows]
        if todo:
            bench = open_bench(table.conditions)
            fill(table, todo, bench=bench, save=lambda: table.save(workspace.tables))
        checks = Checks()
        # Thinning checks with fewer networks than these.
        if len(table.calibration.anchors) < checks.anchors:
            check_table(workspace, table, space, checks)
        table.save(workspace.tables)
    report(table)
    return record(workspace, target, space, table, time.monotonic() - started)


def table_path(workspace: Workspace, table: LatencyTable) -> Path:
    """Return where a table lies."""
    return workspace.tables / f"{table.name}.csv"


def record(
    workspace: Workspace, target: Target, space: SearchSpace, table: LatencyTable, seconds: float
) -> dict[str, Any]:
    """Save the table and keep what `heat profile` prints."""
    path = table.save(workspace.tables)
    conditions = table.conditions
    result = {
        "device": conditions.device,
        "requested": target.device.name,
        "detected": table.facts.get("detected", {}),
        "conditions": asdict(conditions),
        "runtime": conditions.runtime,
        "runtime_version": conditions.runtime_version,
        "precision": conditions.precision,
        "threads": conditions.threads,
        "input_size": list(space.template.input_size),
        "entries": len(table.rows),
        "table": str(path),
        "source": "estimated" if table.estimated else "measured",
        "here": target.here,
        "held_out_error": table.calibration.held_out_error,
        "factor": table.calibration.factor,
        "overhead_ms": table.calibration.overhead_ms,
        "memory_error": table.memory.held_out_error if table.memory else None,
        "unstable": round(table.unstable, 4),
        "other_state": round(len(table.strays()) / max(1, len(table.rows)), 4),
        "disturbance": table.facts.get("disturbance"),
        "spent_seconds": table.facts.get("seconds"),
        "space": space.to_json(),
        "seconds": round(seconds, 1),
    }
    return workspace.record("profile", result)


def standing_table(
    workspace: Workspace, target: Target, input_size: tuple[int, int]
) -> LatencyTable:
    """Return the table that stands; a broken or stale one gives way to a new one."""
    try:
        return open_table(workspace.tables, target, input_size)
    except TableError as error:
        print(f"warning: {error}: now measured afresh", file=sys.stderr)
        return empty_table(target, input_size)


def check_table(
    workspace: Workspace, table: LatencyTable, space: SearchSpace, checks: Checks
) -> None:
    """Measure whole networks that calibrate the table and tell its error."""
    calibrate(
        table,
        space.template,
        space.widths,
        space.positions,
        checks=checks,
        save=lambda: table.save(workspace.tables),
    )


def report(table: LatencyTable) -> None:
    """Say what the time went into, what disturbed it, and how good the table is."""
    spent = table.facts.get("seconds", {})
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in spent.items())
    error = table.calibration.held_out_error
    print(
        f"{len(table.rows)} entries; {parts}; error on networks not seen "
        f"{'unknown' if error is None else f'{100 * error:.1f} %'}",
        file=sys.stderr,
    )
    if table.unstable:
        print(
            f"unstable: {100 * table.unstable:.0f} % of the entries are known no better than 10 %",
            file=sys.stderr,
        )
    strays = len(table.strays()) / max(1, len(table.rows))
    if strays:
        print(
            f"unstable: {100 * strays:.0f} % of the entries were measured while the machine was "
            f"in another state (reference network more than {100 * SAME_STATE:.0f} % off): profile "
            "again",
            file=sys.stderr,
        )
    for text in disturbances(table.facts):
        print(f"warning: {text}", file=sys.stderr)


def disturbances(facts: dict[str, Any]) -> list[str]:
    """Return in words what disturbed a measurement enough to matter."""
    worst = facts.get("disturbance", {})
    said = []
    if worst.get("other_load", 0) > 0.1:
        said.append(f"other processes kept up to {worst['other_load']:.1f} cores busy")
    if worst.get("stolen", 0) > 0.02:
        said.append(f"the hypervisor took up to {100 * worst['stolen']:.0f} % of the time")
    if worst.get("throttled", 0):
        said.append(f"the container's CPU quota stopped it {worst['throttled']} times in a batch")
    if worst.get("slowdown", 0) > 0.1:
        fell = 100 * (1 - 1 / (1 + worst["slowdown"]))
        said.append(f"the clock fell by up to {fell:.0f} % (throttling)")
    speeds = facts.get("reference_ms", {})
    if speeds and speeds["slowest"] > 1.1 * speeds["fastest"]:
        drift = speeds["slowest"] / speeds["fastest"] - 1
        said.append(
            f"the reference network's speed changed by {100 * drift:.0f} %; times are compared at "
            "one speed of it"
        )
    return said


def warn(target: Target) -> None:
    """Print what is unexpected about the device."""
    for text in target.warnings:
        print(f"warning: {text}", file=sys.stderr)
