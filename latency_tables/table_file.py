"""Latency tables on disk: a sealed CSV of rows, and a JSON sidecar with samples and provenance."""

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import NotRequired, cast

import pandas as pd

from supernet.atomic import write_text
from supernet.errors import HeatError, TableError, wrong_format
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.operators.entries import Entry

from .calibration import Calibration, Check
from .columns import COLUMNS, EntryColumns, entry_columns, entry_of
from .conditions import Conditions
from .costs import MemoryModel
from .samples import EntrySample, NetworkSample
from .sidecar import NetworkSampleRecord, TableSidecar
from .table import LatencyTable, Moment, Row

FORMAT_VERSION = 3
"""History: 1, the first; 2, reference speed, intervals, more conditions, memory, two-part
calibration; 3, samples and the machine's states, rows estimated from all of them. Version 2 is
still read: each of its rows becomes one sample."""

OLD_VERSION = 2
NEW_CONDITIONS = ("spinning", "pinning")
"""Columns that version 2 lacks."""
EXACT: Mapping[str, Callable[[str], float]] = {
    **dict.fromkeys(("uncertainty_ms", "reference_ms", "extra"), float),
    "ms": lambda text: float(text or "nan"),
}
"""What reads the numbers of a CSV as they were written: pandas 2 is off in the last digit."""
OLD_COLUMNS = ("ms", "min_ms", "uncertainty_ms", "spread", "n", "reference_ms", "date", "heat")
OLD_INTERVAL_SDS = 3.92
"""Version 2 stored the width of a 95 % interval."""
OLD_REPEAT = 0.02
"""Relative repeatability of a row of version 2 at best, however narrow its interval."""

SEAL = "# sha256="


class CsvRow(EntryColumns):
    """One line of the CSV; its columns of conditions repeat the sidecar's and are not read."""

    ms: float
    uncertainty_ms: float
    samples: NotRequired[int]
    """Absent in version 2."""
    reference_ms: float
    date: str
    heat: str
    source: str


def write_table(table: LatencyTable, folder: Path) -> Path:
    """Write the sidecar, then the CSV, by which a table is found; return the CSV's path.

    A borrowed table stays as it was measured.
    """
    path = folder / f"{table.name}.csv"
    if table.borrowed:
        return path
    shared = asdict(table.conditions)
    ordered = sorted(table.rows.items())
    frame = pd.DataFrame([entry_columns(entry) | asdict(row) | shared for entry, row in ordered])
    text = frame.to_csv(index=False)
    sidecar = {
        "format": FORMAT_VERSION,
        "seal": seal_of(text),
        "conditions": shared,
        "calibration": asdict(table.calibration),
        "memory": asdict(table.memory) if table.memory else None,
        "held_out_error": table.calibration.held_out_error,
        "facts": table.facts,
        "samples": [
            [*entry_columns(s.entry).values(), s.ms, s.sd_ms, list(s.state), s.date, s.heat]
            for s in table.samples
        ],
        "networks": [
            {
                "architecture": net.architecture.to_dict(),
                "ms": net.ms,
                "sd": net.sd,
                "state": list(net.state),
                "date": net.date,
            }
            for net in table.networks
        ],
        "history": [[m.seconds, *m.state] for m in table.history],
    }
    write_text(path.with_suffix(".json"), json.dumps(sidecar) + "\n")
    write_text(path, f"{text}{SEAL}{seal_of(text)}\n")
    return path


def read_table(path: Path) -> LatencyTable:
    """Read a table; one that was edited, cut short or holds wrong values is a `TableError`."""
    try:
        content = path.read_text(encoding="utf-8")
        sidecar: TableSidecar = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if path.exists() and SEAL not in path.read_text(encoding="utf-8", errors="replace"):
            raise TableError(
                f"{path} is no latency table: it has no {path.with_suffix('.json').name} beside it"
            ) from None
        raise TableError(f"no table at {error.filename}: run heat profile") from None
    except (OSError, ValueError, RecursionError) as error:
        raise TableError(
            f"{path} or its .json cannot be read ({error}): run heat profile again"
        ) from None
    text, found, seal = content.rpartition(SEAL)
    if not found or seal.strip() != seal_of(text):
        raise TableError(
            f"{path} was cut short or edited after it was measured: run heat profile again"
        )
    try:
        version = sidecar["format"]
        if version not in (FORMAT_VERSION, OLD_VERSION):
            known = (OLD_VERSION, FORMAT_VERSION)
            raise TableError(wrong_format(path, version, known, "run heat profile again"))
        memory = sidecar["memory"]
        table = LatencyTable(
            Conditions(**sidecar["conditions"]),
            memory=MemoryModel.from_json(memory) if memory else None,
            facts=sidecar["facts"],
        )
        if version == OLD_VERSION:
            _read_old(table, text, sidecar, path)
            return table
        calibration = sidecar["calibration"]
        table.calibration = Calibration(
            calibration["factor"],
            calibration["overhead_ms"],
            tuple(Check(**check) for check in calibration["checks"]),
        )
        for values in _rows(text, path, [item.name for item in fields(Row)]):
            row = Row(
                ms=values["ms"],
                uncertainty_ms=values["uncertainty_ms"],
                samples=values["samples"],
                reference_ms=values["reference_ms"],
                date=values["date"],
                heat=values["heat"],
                source=values["source"],
            )
            _check(row.ms, values, path)
            table.rows[entry_of(values)] = row
        table.add(
            [
                EntrySample(_entry_in(columns), ms, sd_ms, tuple(state), date, heat)
                for *columns, ms, sd_ms, state, date, heat in sidecar["samples"]
            ],
            [_network(record, path) for record in sidecar["networks"]],
            [Moment(seconds, tuple(state)) for seconds, *state in sidecar["history"]],
        )
        if sidecar.get("seal", seal.strip()) != seal.strip() and table.samples:
            table.refit()  # a kill between the two files: the samples are newer than the rows
        return table
    except HeatError as error:
        raise TableError(str(error)) from None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise TableError(f"{path} is no latency table ({error}): run heat profile again") from None


def _entry_in(columns: Sequence[str | float]) -> Entry:
    return entry_of(cast(EntryColumns, dict(zip(COLUMNS, columns, strict=True))))


def _network(record: NetworkSampleRecord, path: Path) -> NetworkSample:
    architecture = Architecture.from_dict(record["architecture"], str(path))
    state = tuple(record["state"])
    return NetworkSample(architecture, record["ms"], record["sd"], state, record["date"])


def _read_old(table: LatencyTable, text: str, sidecar: TableSidecar, path: Path) -> None:
    """Read version 2: measured rows become samples, from which new rows are estimated."""
    old = sidecar["calibration"]
    calibration = Calibration(old["factor"], old["overhead_ms"])
    checks = tuple(
        Check(
            calibration.predict_ms(sample["sum_ms"], sample["entries"]), 0.0, sample["measured_ms"]
        )
        for sample in old["held_out"]
    )
    table.calibration = Calibration(calibration.factor, calibration.overhead_ms, checks)
    if table.conditions.runtime == "onnxruntime" and table.conditions.threads > 1:
        # Version 2 left spinning to the runtime, whose default is always.
        table.conditions = replace(table.conditions, spinning="always")
    samples = []
    rows = _rows(text, path, [*OLD_COLUMNS, "source"], without=NEW_CONDITIONS)
    measured = all(values["source"] == "measured" for values in rows)
    for values in rows:
        ms, entry = float(values["ms"]), entry_of(values)
        _check(ms, values, path)
        sd_ms = math.hypot(float(values["uncertainty_ms"]) / OLD_INTERVAL_SDS, OLD_REPEAT * ms)
        reference_ms, date, heat = values["reference_ms"], values["date"], values["heat"]
        if measured and reference_ms > 0:
            samples.append(EntrySample(entry, ms, sd_ms, (reference_ms,), date, heat))
        else:
            uncertainty = float(values["uncertainty_ms"])
            source = str(values["source"])
            table.rows[entry] = Row(ms, uncertainty, 0, reference_ms, date, heat, source)
    table.add(samples, (), [Moment(1.0, sample.state) for sample in samples])
    if samples:
        table.refit()


def _check(ms: float, values: CsvRow, path: Path) -> None:
    if not (math.isfinite(ms) and ms >= 0):
        raise TableError(f"{path}: {entry_of(values)} has {ms} ms: run heat profile again")


def _rows(text: str, path: Path, own: Sequence[str], without: Sequence[str] = ()) -> list[CsvRow]:
    """Return the rows of the CSV.

    Raises `TableError` for unknown or missing columns; a table has those of an entry, those of its
    conditions except `without`, and its `own`.
    """
    if not text.strip():
        return []
    wanted = {*COLUMNS, *(item.name for item in fields(Conditions)), *own} - set(without)
    strange = sorted(set(next(csv.reader(io.StringIO(text)))) ^ wanted)
    if strange:
        raise TableError(
            f"{path}: columns {', '.join(strange)} unknown or missing: run heat profile again"
        )
    frame = pd.read_csv(io.StringIO(text), keep_default_na=False, converters=EXACT)
    return cast(list[CsvRow], frame.to_dict("records"))


def seal_of(text: str) -> str:
    """Return the hash for the CSV's last line."""
    return hashlib.sha256(text.encode()).hexdigest()
