"""Estimates a latency table from a device's published figures: a roofline for each operator.

    t(entry) = a * 2 MACs / peak + b * bytes / bandwidth + c * nodes * launch

The three coefficients of an operator are its inefficiencies: 1 reaches the published figures. They
are fitted on measured tables and stored in `efficiencies.json`. On devices of another kind than
those they were fitted on, an estimate is an educated guess, and is always labelled as an estimate.
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Self

import numpy as np
import onnx

from supernet.atomic import write_text
from supernet.errors import DeviceError, TableError
from supernet.heatdetr.architecture import CONDENSED
from supernet.heatdetr.operators import OPERATORS
from supernet.heatdetr.operators.entries import Entry
from supernet.version import __version__

from .conditions import Conditions
from .costs import MIB
from .devices import Figures, Target
from .families import FLOAT_BYTES
from .models import write
from .probe.setting import Setting
from .sidecar import EstimateErrors
from .table import LatencyTable, Row
from .terms import ProbeModel

EFFICIENCIES = Path(__file__).parent / "efficiencies.json"

SMALLEST_MS = 0.02
"""Entries below it are mostly noise: no coefficients are fitted on them, no errors reported."""

BYTES = {"f32": 4, "f16": 2, "bf16": 2, "int8": 1}

LARGEST = 5.0
"""Largest coefficient: beyond it one term of the roofline would absorb another's time."""

NEAREST: Mapping[str, str] = {
    **dict.fromkeys(CONDENSED, "oa"),
    **{f"t1_{kind}": "t1_oa" for kind in CONDENSED},
    "top_k": "decode",
}
"""For operators on no measured table yet, the operator that they replace: its coefficients are
used."""

Parts = tuple[float, float, float]
"""Milliseconds of multiply-adds, of memory traffic and of starting nodes."""


def ideal_parts(entry: Entry, figures: Figures, setting: Setting) -> Parts:
    """Return the milliseconds of an entry at the device's published figures."""
    if setting.precision not in figures.peak_gflops:
        known = ", ".join(figures.peak_gflops)
        raise DeviceError(
            f"no figure for {setting.precision}: --precision {known} can be estimated"
        )
    share = min(1.0, setting.threads / figures.cores)
    operator = OPERATORS[entry.op]
    compute = 2 * operator.macs(entry).total / (figures.peak_gflops[setting.precision] * share)
    cells = sum(c * h * w for c, h, w in (*operator.inputs(entry), *operator.outputs(entry)))
    cells += 2 * operator.hidden * entry.d_out * entry.h * entry.w
    maps = cells * FLOAT_BYTES
    fits = maps <= figures.cache_mb * MIB
    weights = operator.params(entry) * BYTES[setting.precision]
    traffic = maps / (figures.cache_gbs if fits else figures.bandwidth_gbs)
    traffic = traffic / share if fits else traffic
    traffic += weights / figures.bandwidth_gbs
    nodes = node_count(operator.narrow(entry))
    return compute / 1e6, traffic / 1e6, nodes * figures.launch_us / 1e3


@lru_cache(maxsize=1024)
def node_count(entry: Entry) -> int:
    """Return the number of nodes of an entry's deployed graph."""
    return len(onnx.load_from_string(write(ProbeModel("alone", entry)).onnx).graph.node)


@dataclass(frozen=True, slots=True)
class Efficiencies:
    """Roofline coefficients of each operator."""

    coefficients: Mapping[str, Parts]
    fitted_on: tuple[str, ...]
    """Names of the tables that the coefficients were fitted on."""
    error: EstimateErrors

    def ms(self, entry: Entry, figures: Figures, setting: Setting) -> float:
        """Return an entry's estimated milliseconds."""
        parts = ideal_parts(entry, figures, setting)
        weights = self.coefficients[self.fitted(entry.op)]
        return sum(weight * part for weight, part in zip(weights, parts, strict=True))

    def fitted(self, op: str) -> str:
        """Return the operator whose coefficients are used for `op`: itself where it was measured.

        Raises `TableError` where neither `op` nor its nearest operator has coefficients.
        """
        for name in (op, NEAREST.get(op, op)):
            if name in self.coefficients:
                return name
        raise TableError(
            f"no coefficients for the operator {op}: measure it (heat profile), or fit them anew "
            "(benchmarks/estimate_error.py --write)"
        )

    @classmethod
    def fit(cls, tables: Sequence[tuple[LatencyTable, Figures]]) -> Self:
        """Fit every operator's coefficients on measured tables, minimising relative errors."""
        rows: dict[str, list[tuple[Parts, float]]] = defaultdict(list)
        for table, figures in tables:
            for entry, ms in table.times_ms().items():
                if ms > 0:
                    parts = ideal_parts(entry, figures, table.conditions.setting)
                    rows[entry.op].append((parts, ms))
        coefficients = {op: _nonnegative(_clear(found)) for op, found in rows.items()}
        return cls(coefficients, tuple(table.conditions.stem for table, _ in tables), {})

    @classmethod
    def load(cls, path: Path = EFFICIENCIES) -> Self:
        """Read the coefficients that HEAT ships."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            coefficients = {op: (a, b, c) for op, (a, b, c) in values["coefficients"].items()}
            return cls(coefficients, tuple(values["fitted_on"]), values["error"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TableError(
                f"{path} cannot be read ({error}): benchmarks/estimate_error.py --write makes it"
            ) from None

    def save(self, path: Path = EFFICIENCIES) -> None:
        """Write the file that HEAT ships."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")


def _clear(rows: Sequence[tuple[Parts, float]]) -> Sequence[tuple[Parts, float]]:
    """Return the rows that are not mostly noise, or all where there are none."""
    return [row for row in rows if row[1] >= SMALLEST_MS] or rows


def _nonnegative(rows: Sequence[tuple[Parts, float]]) -> Parts:
    """Return the coefficients in [0, LARGEST] with the least squared relative error.

    Every subset of the three is tried; the best admissible one is taken.
    """
    left = np.array([np.array(parts) / ms for parts, ms in rows])
    right = np.ones(len(rows))
    best, least = np.zeros(3), math.inf
    for size in (1, 2, 3):
        for kept in combinations(range(3), size):
            found = np.zeros(3)
            found[list(kept)] = np.linalg.lstsq(left[:, kept], right, rcond=None)[0]
            loss = float(((left @ found - right) ** 2).sum())
            if (found >= 0).all() and (found <= LARGEST).all() and loss < least:
                best, least = found, loss
    return float(best[0]), float(best[1]), float(best[2])


def estimated_table(
    target: Target,
    input_size: tuple[int, int],
    entries: Iterable[Entry],
    efficiencies: Efficiencies,
) -> LatencyTable:
    """Return a table of estimates for a declared device."""
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
    for entry in wanted:
        ms = efficiencies.ms(entry, figures, target.setting)
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
