"""Estimates a latency table from a device's published figures (`roofline.py`).

On devices of another kind than those that the roofline was fitted on, an estimate is an educated
guess, and is always labelled as an estimate. Whole networks that others have timed on the device
correct it (`published.py`), and better so rows that were measured there.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from datetime import date

from supernet.errors import DeviceError, TableError
from supernet.heatdetr.operators import OPERATORS
from supernet.heatdetr.operators.entries import Entry
from supernet.version import __version__

from .conditions import Conditions
from .devices import Target
from .published import correction_for
from .roofline import SMALLEST_MS, Efficiencies
from .table import LatencyTable, Row


def estimated_table(
    target: Target,
    input_size: tuple[int, int],
    entries: Iterable[Entry],
    efficiencies: Efficiencies,
) -> LatencyTable:
    """Return a table of estimates for a declared device, corrected by networks timed there."""
    figures = target.device.figures
    if figures is None:
        raise DeviceError(
            f"{target.device.name} has no published figures: add [figures] to its file, or measure "
            "it with --host or --pack"
        )
    cpu = replace(target.detected, model=target.device.title)
    conditions = Conditions.of(
        target.name, cpu, target.gpu, target.setting, "estimated", input_size
    )
    today = date.today().isoformat()
    table = LatencyTable(conditions)
    wanted = list(entries)
    correction = correction_for(target, figures, efficiencies)
    for entry in wanted:
        ms = correction.ms(entry, efficiencies.ms(entry, figures, target.setting))
        table.rows[entry] = Row(ms, ms, 0, 0.0, today, __version__, "estimated")
    table.facts["estimate"] = {
        "figures": asdict(figures),
        "fitted_on": list(efficiencies.fitted_on),
        "error": efficiencies.error.copy(),
        "not_fitted": {
            op: efficiencies.fitted(op)
            for op in sorted({entry.op for entry in wanted})
            if efficiencies.fitted(op) != op
        },
        "published": correction.facts(),
    }
    return table


def spread_entries(entries: Iterable[Entry], count: int) -> list[Entry]:
    """Return `count` entries to measure: from each operator in turn, its middle ones first."""
    queues: dict[str, list[Entry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda e: (e.op, e.stride, e.d_in, e.d_out)):
        queues[entry.op].append(entry)
    cost = {op: sum(OPERATORS[op].macs(e).total for e in found) for op, found in queues.items()}
    order = sorted(queues, key=lambda op: -cost[op])
    chosen: list[Entry] = []
    turn = 0
    while len(chosen) < count and any(queues.values()):
        queue = queues[order[turn % len(order)]]
        if queue:
            chosen.append(queue.pop(len(queue) // 2))
        turn += 1
    return chosen


def corrected(table: LatencyTable, measured: Mapping[Entry, Row]) -> LatencyTable:
    """Return an estimated table corrected by a few measured rows, which replace their estimates.

    Every operator's estimates are multiplied by the median of measured / estimated over all rows,
    and, where the operator itself was measured, by its own deviation from that, shrunk by half.
    """
    logs: dict[str, list[float]] = defaultdict(list)
    for entry, row in measured.items():
        if row.ms > 0 and table.row(entry).ms > 0:
            logs[entry.op].append(math.log(row.ms / table.row(entry).ms))
    if not logs:
        raise TableError("no measured row to correct the estimate by: measure at least one")
    middle = statistics.median(value for found in logs.values() for value in found)

    def factor(op: str) -> float:
        own = logs.get(op, [])
        return math.exp(middle + sum(value - middle for value in own) / (len(own) + 1))

    rows = {
        entry: replace(row, ms=row.ms * factor(entry.op), source="corrected")
        for entry, row in table.rows.items()
    }
    return replace(table, rows=rows | dict(measured), facts=table.facts.copy())


def entry_errors(table: LatencyTable, truth: Mapping[Entry, float]) -> list[float]:
    """Return |predicted / true - 1| of the entries of at least `SMALLEST_MS`."""
    times = table.times_ms()
    return [
        abs(times[entry] / ms - 1)
        for entry, ms in truth.items()
        if entry in times and ms >= SMALLEST_MS
    ]
