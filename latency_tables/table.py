"""The latency table: milliseconds of every entry, under one set of conditions, with provenance.

On disk a table is a CSV (one row an entry, each row with its conditions) whose last line seals the
file, and a JSON sidecar beside it with what belongs to the table as a whole.
"""

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

FORMAT_VERSION = 1
"""History: 1, the first."""

SEAL = "# sha256="


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """What must be equal for two latency rows to be comparable."""

    device: str
    """The machine's name: a device's only if it is that device."""
    model: str
    """CPU or GPU model as detected."""
    runtime: str
    runtime_version: str
    precision: str
    threads: int
    height: int
    """Input height in pixels."""
    width: int
    """Input width in pixels."""

    @property
    def stem(self) -> str:
        """File name without suffix."""
        size = f"{self.height}x{self.width}"
        return f"{self.device}-{self.runtime}-{self.precision}-t{self.threads}-{size}"

    def differences(self, other: "Conditions") -> str:
        """Say where two sets of conditions differ, or return an empty string."""
        mine, theirs = asdict(self), asdict(other)
        return ", ".join(
            f"{key} {mine[key]} against {theirs[key]}" for key in mine if mine[key] != theirs[key]
        )


@dataclass(frozen=True, slots=True)
class Row:
    """Milliseconds of one entry."""

    ms: float
    """Signed sum of the probes' minima, clamped at 0: what predictions add up."""
    median_ms: float
    """The same sum of the probes' medians."""
    spread: float
    """Largest interquartile range among the probes, as a share of their median."""
    n: int
    """Timed runs of each probe."""
    date: str
    source: str = "measured"
    """measured or estimated."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Whole networks measured against the sum of their entries."""

    factor: float = 1.0
    """Measured / predicted on the calibration networks; multiplies every prediction."""
    anchors: tuple[tuple[float, float], ...] = ()
    """(predicted before the factor, measured) ms of the calibration networks."""
    held_out: tuple[tuple[float, float], ...] = ()
    """(predicted with the factor, measured) ms of networks not used for it."""

    @property
    def held_out_error(self) -> float | None:
        """Median |predicted / measured - 1| on the held-out networks."""
        errors = sorted(abs(predicted / measured - 1) for predicted, measured in self.held_out)
        if not errors:
            return None
        middle = len(errors) // 2
        return errors[middle] if len(errors) % 2 else (errors[middle - 1] + errors[middle]) / 2


@dataclass(slots=True)
class LatencyTable:
    """Rows under one set of conditions."""

    conditions: Conditions
    rows: dict[Entry, Row] = field(default_factory=dict)
    calibration: Calibration = Calibration()
    facts: dict[str, Any] = field(default_factory=dict)
    """Detected machine, HEAT version, seconds spent."""

    def missing(self, entries: Mapping[str, Entry]) -> list[Entry]:
        """Return the distinct entries that have no row yet."""
        return sorted({entry for entry in entries.values() if entry not in self.rows})

    def predict_ms(self, architecture: Architecture) -> float:
        """Return the predicted latency of the deployed network; a missing row is an error."""
        return self.calibration.factor * self.sum_ms(architecture)

    def sum_ms(self, architecture: Architecture) -> float:
        """Add up the rows of an architecture, before calibration."""
        return sum(self.row(entry).ms for entry in architecture.entries().values())

    def row(self, entry: Entry) -> Row:
        """Return a row; a miss names the entry and the nearest row."""
        try:
            return self.rows[entry]
        except KeyError:
            near = [other for other in self.rows if other.op == entry.op] or list(self.rows)
            nearest = min(near, key=lambda other: _distance(entry, other), default=None)
            raise TableError(
                f"the table {self.conditions.stem} has no row for {entry} (nearest: {nearest}): "
                "run heat profile again with this input size and space"
            ) from None

    def require(self, conditions: Conditions) -> None:
        """Refuse to serve conditions other than the table's own."""
        different = conditions.differences(self.conditions)
        if different:
            raise TableError(
                f"the table {self.conditions.stem} was measured under other conditions "
                f"({different}): run heat profile again"
            )

    def scaled(self, factor: float) -> "LatencyTable":
        """Return the table with every prediction multiplied."""
        changed = replace(self.calibration, factor=self.calibration.factor * factor)
        return LatencyTable(self.conditions, self.rows, changed, self.facts)

    def save(self, folder: Path) -> Path:
        """Write the CSV and the sidecar; return the CSV's path."""
        shared = asdict(self.conditions)
        frame = pd.DataFrame(
            [asdict(entry) | asdict(row) | shared for entry, row in sorted(self.rows.items())]
        )
        text = frame.to_csv(index=False)
        path = folder / f"{self.conditions.stem}.csv"
        sidecar = {
            "format": FORMAT_VERSION,
            "conditions": shared,
            "calibration": asdict(self.calibration),
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
            raise TableError(f"{path} or its .json cannot be read ({error})") from None
        text, found, seal = content.rpartition(SEAL)
        if not found or seal.strip() != _hash(text):
            raise TableError(
                f"{path} was cut short or edited after it was measured: run heat profile again"
            )
        try:
            if sidecar["format"] != FORMAT_VERSION:
                raise TableError(
                    f"{path}: format {sidecar['format']}, this HEAT reads {FORMAT_VERSION}"
                )
            calibration = Calibration(
                sidecar["calibration"]["factor"],
                tuple((a, b) for a, b in sidecar["calibration"]["anchors"]),
                tuple((a, b) for a, b in sidecar["calibration"]["held_out"]),
            )
            table = cls(Conditions(**sidecar["conditions"]), {}, calibration, sidecar["facts"])
            frame = pd.read_csv(io.StringIO(text))
            names = [item.name for item in fields(Entry)]
            kept = [item.name for item in fields(Row)]
            for values in frame.to_dict("records"):
                entry = Entry(**{str(name): values[name] for name in names})
                row = Row(**{str(name): values[name] for name in kept})
                if not (math.isfinite(row.ms) and row.ms >= 0):
                    raise TableError(f"{path}: {entry} has {row.ms} ms: run heat profile again")
                table.rows[entry] = row
            return table
        except (KeyError, TypeError, ValueError) as error:
            raise TableError(f"{path} is no latency table ({error}): run heat profile") from None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _distance(a: Entry, b: Entry) -> float:
    pairs = ((a.d_in, b.d_in), (a.d_out, b.d_out), (a.h, b.h), (a.w, b.w))
    return sum(abs(math.log2(max(1, x) / max(1, y))) for x, y in pairs)
