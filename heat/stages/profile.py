"""`heat profile`: measure this machine's latency table."""

import sys
import time
from dataclasses import asdict
from typing import Any

from latency_tables.devices import Target
from latency_tables.profile import calibrate, empty_table, fill, open_table, space_entries
from latency_tables.table import LatencyTable
from supernet.errors import TableError
from supernet.supernet import SearchSpace

from ..workspace import Workspace


def profile(workspace: Workspace, target: Target, space: SearchSpace) -> dict[str, Any]:
    """Measure every entry of the space that the table lacks, then calibrate the table."""
    started = time.monotonic()
    warn(target)
    table = _table(workspace, target, space.template.input_size)
    oa = space.template.global_block == "oa"
    fill(
        table,
        space_entries(space.template, space.widths, oa=oa),
        save=lambda: table.save(workspace.tables),
    )
    ensure_calibrated(workspace, table, space)
    path = table.save(workspace.tables)
    result = {
        "device": target.name,
        "requested": target.device.name,
        "detected": asdict(target.detected),
        "runtime": target.runtime,
        "runtime_version": table.conditions.runtime_version,
        "precision": table.conditions.precision,
        "threads": target.threads,
        "input_size": list(space.template.input_size),
        "entries": len(table.rows),
        "table": str(path),
        "held_out_error": table.calibration.held_out_error,
        "factor": table.calibration.factor,
        "space": space.to_json(),
        "seconds": round(time.monotonic() - started, 1),
    }
    return workspace.record("profile", result)


def _table(workspace: Workspace, target: Target, input_size: tuple[int, int]) -> LatencyTable:
    """Return the table that stands; a broken or stale one gives way to a new one."""
    try:
        return open_table(workspace.tables, target, input_size)
    except TableError as error:
        print(f"warning: {error}: now measured afresh", file=sys.stderr)
        return empty_table(target, input_size)


def ensure_calibrated(workspace: Workspace, table: LatencyTable, space: SearchSpace) -> None:
    """Calibrate a table that is not calibrated yet."""
    if not table.calibration.anchors:
        calibrate(
            table,
            space.template,
            space.widths,
            space.positions,
            save=lambda: table.save(workspace.tables),
        )


def warn(target: Target) -> None:
    """Print what is unexpected about the device."""
    for text in target.warnings:
        print(f"warning: {text}", file=sys.stderr)
