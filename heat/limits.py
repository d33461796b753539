"""What a thinned network may cost, and what it is predicted to cost."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from latency_tables.costs import size_mb, working_set_mb
from latency_tables.table import LatencyTable
from supernet.architecture import Architecture, Entry
from supernet.errors import UserError
from supernet.supernet import SearchSpace

from .thinning import Logits, State

Percentile = Literal["p50", "p95"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network costs, predicted or measured."""

    fps: float
    size_mb: float
    memory_mb: float
    """NaN where the table has no memory model."""
    p50_ms: float = math.nan
    p95_ms: float = math.nan
    fps_now: float = math.nan
    """Measured frames per second as they were, not at the speed of the table."""

    def at(self, percentile: Percentile) -> float:
        """Return a percentile of the latency in milliseconds."""
        return self.p95_ms if percentile == "p95" else self.p50_ms


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the deployed network must keep."""

    target_fps: float | None = None
    """Frames per second, batch 1."""
    max_latency_ms: float | None = None
    """Milliseconds at `percentile`, batch 1."""
    percentile: Percentile = "p50"
    max_memory_mb: float | None = None
    """Peak resident memory of the process that runs it, MiB."""
    max_size_mb: float | None = None
    """Size of the ONNX file, MiB."""

    def __post_init__(self) -> None:
        """Refuse what is no limit."""
        for flag, value in (
            ("--target-fps", self.target_fps),
            ("--max-latency-ms", self.max_latency_ms),
            ("--max-memory-mb", self.max_memory_mb),
            ("--max-size-mb", self.max_size_mb),
        ):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{flag} {value:g}: a positive number is needed")
        if self.target_fps is None and self.max_latency_ms is None:
            raise UserError("no speed asked for: give --target-fps or --max-latency-ms")

    @property
    def fps(self) -> float:
        """The frame rate that is asked for, by whichever limit asks for more."""
        wanted = [self.target_fps] if self.target_fps else []
        if self.max_latency_ms:
            wanted.append(1000.0 / self.max_latency_ms)
        return max(wanted)

    def load(self, cost: Cost) -> float:
        """Return the share of its time that a network needs: 1 is just in time."""
        shares = [self.target_fps / cost.fps] if self.target_fps else []
        if self.max_latency_ms:
            shares.append(cost.at(self.percentile) / self.max_latency_ms)
        return max(shares)

    def broken(self, cost: Cost, margin: float = 0.0) -> list[str]:
        """Say which limits a cost exceeds; the speed must pass its limit by the margin."""
        said = []
        if self.target_fps and cost.fps < self.target_fps * (1 + margin):
            said.append(f"{cost.fps:.2f} FPS, target {self.target_fps:g}")
        if self.max_latency_ms:
            ms = cost.at(self.percentile)
            if ms * (1 + margin) > self.max_latency_ms:
                said.append(f"{self.percentile} {ms:.2f} ms, at most {self.max_latency_ms:g}")
        return said + self._heavy(cost)

    def _heavy(self, cost: Cost) -> list[str]:
        return [
            f"{what} {value:.1f} MiB, at most {limit:g}"
            for what, value, limit in (
                ("memory", cost.memory_mb, self.max_memory_mb),
                ("size", cost.size_mb, self.max_size_mb),
            )
            if limit is not None and value > limit
        ]

    @property
    def weigh(self) -> bool:
        """Whether memory or size is limited."""
        return self.max_memory_mb is not None or self.max_size_mb is not None

    def fits_in(self, cost: Cost) -> bool:
        """Whether memory and size are kept, whatever the speed."""
        return not self._heavy(cost)


@dataclass(slots=True)
class Pricer:
    """Predicts the cost of states on one device, and takes corrections from measured networks."""

    table: LatencyTable
    space: SearchSpace
    logits: Logits
    ensure: Callable[[Architecture], object]
    """Sees to it that the table has an architecture's entries."""
    speed: float = 1.0
    """Measured / predicted latency of the networks measured so far."""
    memory: float = 1.0
    """Measured / predicted memory."""
    p50: float = 1.0
    """Median / lowest latency."""
    p95: float = 1.0
    """95th percentile / lowest latency."""
    _known_ms: dict[tuple[object, ...], float] = field(default_factory=dict)
    _times_ms: Mapping[Entry, float] = field(default_factory=dict)

    def table_ms(self, state: State) -> float:
        """Return the latency that the table predicts, without corrections."""
        architecture = state.architecture(self.space, self.logits)
        key = (architecture.widths, architecture.blocks, architecture.global_block)
        if key not in self._known_ms:
            entries = architecture.entries().values()
            if any(entry not in self._times_ms for entry in entries):
                self.ensure(architecture)
                self._times_ms = self.table.times_ms()
            total_ms = sum(self._times_ms[entry] for entry in entries)
            self._known_ms[key] = self.table.calibration.predict_ms(total_ms, len(entries))
        return self._known_ms[key]

    def cost(self, state: State, *, weight: bool = True) -> Cost:
        """Return what is predicted, corrected; without `weight` memory and size are NaN."""
        ms = self.table_ms(state) * self.speed
        size = memory = math.nan
        if weight:
            architecture = state.architecture(self.space, self.logits)
            size = size_mb(architecture, self.table.conditions.setting)
            if self.table.memory is not None:
                working_set = working_set_mb(architecture)
                memory = self.memory * self.table.memory.predict_mb(size, working_set)
        return Cost(1000.0 / ms, size, memory, ms * self.p50, ms * self.p95)

    def correct(self, state: State, measured: Cost) -> None:
        """Take the predictions to what a network was measured to cost."""
        ms = 1000.0 / measured.fps
        self.speed = ms / self.table_ms(state)
        self.p50, self.p95 = measured.p50_ms / ms, measured.p95_ms / ms
        predicted = self.cost(state)
        if not math.isnan(predicted.memory_mb) and not math.isnan(measured.memory_mb):
            self.memory *= measured.memory_mb / predicted.memory_mb


def worst_ms(prices: Sequence[Pricer], limits: Sequence[Limits]) -> Callable[[State], float]:
    """Return the latency on the first device that leaves as much to do as the worst device does.

    With one device it is the table's latency. The search of one network for several devices thins
    by it: a move helps where it helps the device that is furthest from its target.
    """
    first = limits[0].fps

    def latency_ms(state: State) -> float:
        return max(
            price.table_ms(state) * limit.fps / first
            for price, limit in zip(prices, limits, strict=True)
        )

    return latency_ms
