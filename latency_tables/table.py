"""The latency table: milliseconds of every entry, under one set of conditions, with provenance.

On disk a table is a CSV (one row an entry, each row with its conditions) whose last line seals the
file, and a JSON sidecar beside it with what belongs to the table as a whole.
"""

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from supernet.architecture import Architecture, Entry
from supernet.atomic import write_text
from supernet.errors import TableError

from .calibration import Calibration, Sample
from .conditions import Conditions
from .costs import MemoryModel
from .drift import same_state, scale_to

FORMAT_VERSION = 2
"""History: 1, the first; 2, reference speed, intervals, more conditions, memory, two-part
calibration."""

SEAL = "# sha256="
ESTIMATED = "-estimated"
"""End of an estimated table's file name."""

UNSTABLE = 0.1
"""Relative uncertainty above which a row counts as unstable."""
NEGLIGIBLE_MS = 0.02
"""Absolute uncertainty below which no row counts as unstable."""


@dataclass(frozen=True, slots=True)
class Row:
    """Milliseconds of one entry."""

    ms: float
    """Signed sum of the probes' medians, clamped at 0: what predictions add up."""
    min_ms: float
    """The same sum of the probes' lowest samples."""
    uncertainty_ms: float
    """Confidence intervals of the probes, added in squares."""
    spread: float
    """Largest interquartile range among the probes, as a share of their median."""
    n: int
    """Timed runs of each probe."""
    reference_ms: float
    """The reference network around then: how fast the machine was; 0 if estimated."""
    date: str
    heat: str
    """HEAT version that measured."""
    source: str = "measured"
    """measured, estimated, or corrected (estimated, then fitted to a few measured rows)."""

    @property
    def stable(self) -> bool:
        """Whether the row is known well enough."""
        return self.uncertainty_ms <= max(NEGLIGIBLE_MS, UNSTABLE * self.ms)


@dataclass(slots=True)
class LatencyTable:
    """Rows under one set of conditions."""

    conditions: Conditions
    rows: dict[Entry, Row] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)
    memory: MemoryModel | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """Detected machine, disturbances, seconds spent, how an estimate was made."""

    @property
    def reference_ms(self) -> float:
        """The reference network at the speed that predictions are for: the rows' fast quarter.

        A deployed model is timed by its fastest burst.
        """
        known = sorted(row.reference_ms for row in self.rows.values() if row.reference_ms > 0)
        return known[len(known) // 4] if known else 0.0

    @property
    def name(self) -> str:
        """File name without suffix; an estimate never takes the place of what was measured."""
        return f"{self.conditions.stem}{ESTIMATED if self.estimated else ''}"

    @property
    def estimated(self) -> bool:
        """Whether any row is not measured."""
        return any(row.source != "measured" for row in self.rows.values())

    def strays(self) -> list[Entry]:
        """Return the entries that were measured while the machine was in another state."""
        reference = self.reference_ms
        return [
            entry
            for entry, row in self.rows.items()
            if row.reference_ms > 0 and not same_state(row.reference_ms, reference)
        ]

    @property
    def unstable(self) -> float:
        """Share of rows that are not known well enough."""
        return sum(not row.stable for row in self.rows.values()) / max(1, len(self.rows))

    def missing(self, entries: Mapping[str, Entry]) -> list[Entry]:
        """Return the distinct entries that have no row yet."""
        return sorted({entry for entry in entries.values() if entry not in self.rows})

    def predict_ms(self, architecture: Architecture) -> float:
        """Return the predicted latency of the deployed network; a missing row is an error."""
        count = len(architecture.entries())
        return self.calibration.predict_ms(self.sum_ms(architecture), count)

    def sum_ms(self, architecture: Architecture) -> float:
        """Add up the rows of an architecture, before calibration."""
        times = self.times_ms()
        try:
            return sum(times[entry] for entry in architecture.entries().values())
        except KeyError as error:
            raise self._no_row(error.args[0]) from None

    def times_ms(self) -> dict[Entry, float]:
        """Return every row's milliseconds at the table's reference speed.

        The clock drifts while a table is measured; the reference network, timed in every batch,
        says by how much.
        """
        reference = self.reference_ms
        return {
            entry: row.ms * scale_to(reference, row.reference_ms)
            for entry, row in self.rows.items()
        }

    def row(self, entry: Entry) -> Row:
        """Return a row; a miss names the entry and the nearest row."""
        if entry not in self.rows:
            raise self._no_row(entry)
        return self.rows[entry]

    def _no_row(self, entry: Entry) -> TableError:
        near = [other for other in self.rows if other.op == entry.op] or list(self.rows)
        nearest = min(near, key=lambda other: _distance(entry, other), default=None)
        return TableError(
            f"the table {self.conditions.stem} has no row for {entry} (nearest: {nearest}): "
            "run heat profile again with this input size and space"
        )

    def require(self, conditions: Conditions) -> None:
        """Refuse to serve conditions other than the table's own."""
        conditions.require(
            self.conditions,
            f"the table {self.conditions.stem} was measured under other conditions",
            "run heat profile again, or trust it all the same with --trust-table",
        )

    def merge(self, other: "LatencyTable") -> None:
        """Take over the rows that this table lacks; refuse rows of other conditions."""
        self.conditions.require(
            other.conditions,
            f"tables of {self.conditions.stem} measured under different conditions do not merge",
            "remove the older one, or use another --out",
        )
        self.rows = other.rows | self.rows
        if not self.calibration.anchors:
            self.calibration = other.calibration
        self.memory = self.memory or other.memory
        self.facts = other.facts | self.facts

    def save(self, folder: Path) -> Path:
        """Write the CSV and the sidecar; return the CSV's path."""
        shared = asdict(self.conditions)
        frame = pd.DataFrame(
            [asdict(entry) | asdict(row) | shared for entry, row in sorted(self.rows.items())]
        )
        text = frame.to_csv(index=False)
        path = folder / f"{self.name}.csv"
        sidecar = {
            "format": FORMAT_VERSION,
            "conditions": shared,
            "calibration": asdict(self.calibration),
            "memory": asdict(self.memory) if self.memory else None,
            "held_out_error": self.calibration.held_out_error,
            "facts": self.facts,
        }
        write_text(path, f"{text}{SEAL}{_hash(text)}\n")
        write_text(path.with_suffix(".json"), json.dumps(sidecar, indent=1) + "\n")
        return path

    @classmethod
    def load(cls, path: Path) -> "LatencyTable":
        """Read a table; anything edited, cut short or impossible is a `TableError`."""
        try:
            content = path.read_text(encoding="utf-8")
            sidecar = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise TableError(f"no table at {error.filename}: run heat profile") from None
        except (OSError, ValueError) as error:
            raise TableError(
                f"{path} or its .json cannot be read ({error}): run heat profile again"
            ) from None
        text, found, seal = content.rpartition(SEAL)
        if not found or seal.strip() != _hash(text):
            raise TableError(
                f"{path} was cut short or edited after it was measured: run heat profile again"
            )
        try:
            if sidecar["format"] != FORMAT_VERSION:
                raise TableError(
                    f"{path}: format {sidecar['format']}, this HEAT reads {FORMAT_VERSION}: "
                    "run heat profile again"
                )
            memory = sidecar["memory"]
            table = cls(
                Conditions(**sidecar["conditions"]),
                {},
                _calibration(sidecar["calibration"]),
                MemoryModel.from_json(memory) if memory else None,
                sidecar["facts"],
            )
            table.rows = _rows(text, path)
            return table
        except (KeyError, TypeError, ValueError) as error:
            raise TableError(
                f"{path} is no latency table ({error}): run heat profile again"
            ) from None

    def scaled(self, factor: float) -> "LatencyTable":
        """Return the table with every prediction multiplied."""
        old = self.calibration
        changed = replace(old, factor=old.factor * factor, overhead_ms=old.overhead_ms * factor)
        return replace(self, calibration=changed)


def _calibration(values: Mapping[str, Any]) -> Calibration:
    anchors, held_out = (
        tuple(Sample(**sample) for sample in values[name]) for name in ("anchors", "held_out")
    )
    return Calibration(values["factor"], values["overhead_ms"], anchors, held_out)


COLUMNS = [item.name for kind in (Entry, Row, Conditions) for item in fields(kind)]


def _rows(text: str, path: Path) -> dict[Entry, Row]:
    header = next(csv.reader(io.StringIO(text)), [])
    strange = sorted(set(header) ^ set(COLUMNS))
    if text.strip() and strange:
        raise TableError(
            f"{path}: columns {', '.join(strange)} unknown or missing: run heat profile again"
        )
    rows: dict[Entry, Row] = {}
    if not text.strip():
        return rows
    frame = pd.read_csv(io.StringIO(text), keep_default_na=False, na_values={"ms": ["", "nan"]})
    names = [item.name for item in fields(Entry)]
    kept = [item.name for item in fields(Row)]
    for values in frame.to_dict("records"):
        entry = Entry(**{str(name): values[name] for name in names})
        row = Row(**{str(name): values[name] for name in kept})
        if not (math.isfinite(row.ms) and row.ms >= 0):
            raise TableError(f"{path}: {entry} has {row.ms} ms: run heat profile again")
        rows[entry] = row
    return rows


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _distance(a: Entry, b: Entry) -> float:
    pairs = ((a.d_in, b.d_in), (a.d_out, b.d_out), (a.h, b.h), (a.w, b.w))
    return sum(abs(math.log2(max(1, x) / max(1, y))) for x, y in pairs)
