"""The latency table: milliseconds of every entry, under one set of conditions, with provenance.

A row is an estimate with its uncertainty: the posterior of the model (`model.py`) given all
samples, its own and its neighbours'. On disk a table is a CSV (one row an entry, each row with its
conditions) whose last line seals the file, and a JSON sidecar with the samples and all else that
belongs to the table as a whole (`table_file.py`).
"""

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self, TypeVar

from supernet.errors import TableError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.operators.entries import Entry

from .calibration import INTERVAL_90, Calibration, Check
from .conditions import Conditions
from .costs import MemoryModel
from .model import LatencyModel
from .samples import EntrySample, NetworkSample, State, base_state
from .sidecar import Facts

ESTIMATED = "-estimated"
"""End of an estimated table's file name."""

UNSTABLE = 0.1
"""Relative half width of the 90 % interval above which a row counts as unstable."""
NEGLIGIBLE_MS = 0.02
"""Half width below which no row counts as unstable."""

HISTORY_S = 300.0
"""A table keeps the machine's states of this many seconds of timing, the latest."""


@dataclass(frozen=True, slots=True)
class Row:
    """Milliseconds of one entry."""

    ms: float
    """At the table's base state; predictions add these up."""
    uncertainty_ms: float
    """Half width of the 90 % interval."""
    samples: int
    """Timings of this entry itself; 0 where it is modelled from its neighbours."""
    reference_ms: float
    """The reference network at the base state; 0 if estimated."""
    date: str
    heat: str
    """HEAT version that measured."""
    source: str = "measured"
    """measured; modelled (no sample of its own); estimated (published figures only); corrected
    (estimated, then fitted to a few measured rows)."""

    @property
    def stable(self) -> bool:
        """Whether the row's uncertainty is small enough."""
        return self.uncertainty_ms <= max(NEGLIGIBLE_MS, UNSTABLE * self.ms)


@dataclass(frozen=True, slots=True)
class Moment:
    """A state of the machine, and how long it was seen."""

    seconds: float
    state: State


@dataclass(slots=True)
class LatencyTable:
    """Rows under one set of conditions."""

    conditions: Conditions
    rows: dict[Entry, Row] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)
    memory: MemoryModel | None = None
    facts: Facts = field(default_factory=Facts)
    """Detected machine, disturbances, seconds spent, how an estimate was made."""
    samples: list[EntrySample] = field(default_factory=list)
    networks: list[NetworkSample] = field(default_factory=list)
    history: list[Moment] = field(default_factory=list)
    """States of the machine, round by round, the latest last."""
    borrowed: bool = False
    """Trusted, though it was measured under other conditions: what is measured now is not kept."""
    _model: LatencyModel | None = field(default=None, init=False, compare=False, repr=False)

    @property
    def base(self) -> State:
        """The base state, which milliseconds refer to: each reference's median over all samples."""
        states = [sample.state for sample in self.samples]
        return base_state(states or [net.state for net in self.networks])

    @property
    def reference_ms(self) -> float:
        """The reference network at the base state; 0 where nothing was timed."""
        if self.samples or self.networks:
            return self.base[0] if self.base else 0.0
        known = sorted(row.reference_ms for row in self.rows.values() if row.reference_ms > 0)
        return known[len(known) // 2] if known else 0.0

    @property
    def name(self) -> str:
        """File name without suffix; an estimate's differs, so as not to replace measurements."""
        return f"{self.conditions.stem}{ESTIMATED if self.estimated else ''}"

    @property
    def estimated(self) -> bool:
        """Whether any row is estimated from published figures instead of measured."""
        return any(row.source in ("estimated", "corrected") for row in self.rows.values())

    @property
    def unstable(self) -> float:
        """Share of unstable rows."""
        return sum(not row.stable for row in self.rows.values()) / max(1, len(self.rows))

    @property
    def sampled(self) -> int:
        """Rows with at least one sample of their own."""
        return sum(row.samples > 0 for row in self.rows.values())

    @property
    def model(self) -> LatencyModel | None:
        """The model fitted to the samples on first access; None for a table without samples."""
        if self._model is None and (self.samples or self.networks):
            self._model = self._fitted(self.rows)
        return self._model

    def _fitted(self, entries: Iterable[Entry]) -> LatencyModel:
        known = self.calibration if self.calibration.checks else None
        return LatencyModel(list(entries), self.samples, self.networks, self.base, known)

    def add(
        self,
        samples: Iterable[EntrySample] = (),
        networks: Iterable[NetworkSample] = (),
        moments: Iterable[Moment] = (),
    ) -> None:
        """Add timings; `refit` updates the rows."""
        self.samples.extend(samples)
        self.networks.extend(networks)
        self.history.extend(moments)
        kept, seconds = len(self.history), 0.0
        while kept and seconds < HISTORY_S:
            kept -= 1
            seconds += self.history[kept].seconds
        del self.history[:kept]
        self._model = None

    def copy(self) -> Self:
        """Return a table that can be added to without changing this one."""
        return replace(
            self,
            rows=dict(self.rows),
            samples=list(self.samples),
            networks=list(self.networks),
            history=list(self.history),
            facts=self.facts.copy(),
        )

    def refit(self, entries: Iterable[Entry] = ()) -> None:
        """Estimate every row anew from all samples, those of `entries` included."""
        wanted = dict.fromkeys([*self.rows, *entries])
        wanted |= dict.fromkeys(sample.entry for sample in self.samples)
        for network in self.networks:
            wanted |= dict.fromkeys(network.architecture.entries().values())
        model = self._model = self._fitted(wanted)
        own: dict[Entry, list[EntrySample]] = {}
        for sample in self.samples:
            own.setdefault(sample.entry, []).append(sample)
        latest = max([s.date for s in self.samples] + [n.date for n in self.networks], default="")
        version = self.samples[-1].heat if self.samples else ""
        reference_ms = self.reference_ms
        for entry in wanted:
            ms = float(model.times_ms[model.index[entry]])
            sd = float(model.entry_sd[model.index[entry]])
            mine = own.get(entry, [])
            self.rows[entry] = Row(
                ms=ms,
                uncertainty_ms=INTERVAL_90 * sd * ms,
                samples=len(mine),
                reference_ms=reference_ms,
                date=mine[-1].date if mine else latest,
                heat=mine[-1].heat if mine else version,
                source="measured" if mine else "modelled",
            )
        if self.networks:
            self.calibration = Calibration(
                model.factor,
                model.overhead_ms,
                tuple(Check(net.ms * (1 + error), sd, net.ms) for net, error, sd in model.checks),
            )

    def missing(self, entries: Mapping[str, Entry]) -> list[Entry]:
        """Return the distinct entries that have no row yet."""
        return sorted({entry for entry in entries.values() if entry not in self.rows})

    def predict_ms(self, architecture: Architecture) -> float:
        """Return the predicted latency of the deployed network at the base state.

        A missing row is a `TableError`.
        """
        count = len(architecture.entries())
        sum_ms = self.sum_ms(architecture)
        if self.model is None:
            return self.calibration.predict_ms(sum_ms, count)
        return self.model.predict(self.model.counts(architecture.entries())).ms

    def sum_ms(self, architecture: Architecture) -> float:
        """Add up the rows of an architecture, before calibration."""
        try:
            return sum(self.rows[entry].ms for entry in architecture.entries().values())
        except KeyError as error:
            raise self._no_row(error.args[0]) from None

    def times_ms(self) -> dict[Entry, float]:
        """Return every row's milliseconds at the base state."""
        return {entry: row.ms for entry, row in self.rows.items()}

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
            "run heat profile again with this --input-size, --space, --output-stride, --head and "
            "--boxes"
        )

    def require(self, conditions: Conditions) -> None:
        """Raise `TableError` for conditions other than the table's own."""
        conditions.require(
            self.conditions,
            f"the table {self.conditions.stem} was measured under other conditions",
            "run heat profile again, or trust it all the same with --trust-table",
        )

    def merge(self, other: Self) -> None:
        """Add the samples of another table, and the rows that this one lacks.

        Raises `TableError` where the other was measured under other conditions.
        """
        self.conditions.require(
            other.conditions,
            f"tables of {self.conditions.stem} measured under different conditions do not merge",
            "remove the older one, or use another --out",
        )
        samples, networks, history = self.samples, self.networks, self.history
        self.samples, self.networks, self.history = [], [], []
        self.add(
            _without(other.samples, samples),
            _without(other.networks, networks),
            _without(other.history, history),
        )
        self.add(samples, networks, history)
        self.rows = other.rows | self.rows
        if not self.calibration.checks:
            self.calibration = other.calibration
        self.memory = self.memory or other.memory
        self.facts = other.facts | self.facts
        if self.samples:
            self.refit()


T = TypeVar("T", bound=Hashable)


def _without(found: Iterable[T], known: Iterable[T]) -> list[T]:
    held = set(known)
    return [item for item in found if item not in held]


def _distance(a: Entry, b: Entry) -> float:
    pairs = ((a.d_in, b.d_in), (a.d_out, b.d_out), (a.h, b.h), (a.w, b.w))
    return sum(abs(math.log2(max(1, x) / max(1, y))) for x, y in pairs)
