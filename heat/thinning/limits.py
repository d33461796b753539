"""What a thinned network may cost, and what it is predicted to cost."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from latency_tables.costs import size_mb, working_set_mb
from latency_tables.pricing import Latency, Pricing
from latency_tables.table import LatencyTable
from supernet.errors import UserError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.supernet import SearchSpace

from .moves import Logits, State

Percentile = Literal["p50", "p95"]
DEFAULT_PERCENTILE: Percentile = "p50"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network costs, predicted or measured."""

    fps: float
    """Sustained: kept for 90 % of the time, over the states that the machine was seen in."""
    size_mb: float
    memory_mb: float
    """NaN where the table has no memory model."""
    p50_ms: float = math.nan
    p95_ms: float = math.nan
    fps_now: float = math.nan
    """Measured frames per second as they were, in the state that the machine was in."""
    typical_fps: float = math.nan
    """In the median state of the machine."""
    best_fps: float = math.nan
    """What the machine reaches for a tenth of the time."""
    sd: float = 0.0
    """Relative standard deviation of the frame rates."""

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
    percentile: Percentile = DEFAULT_PERCENTILE
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
        if self.max_latency_ms is None and self.percentile != DEFAULT_PERCENTILE:
            raise UserError(
                f"--at {self.percentile} (percentile in a fleet file) is of a latency: give "
                "--max-latency-ms too, or leave it out"
            )

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
        reasons = []
        if self.target_fps and cost.fps < self.target_fps * (1 + margin):
            reasons.append(f"{cost.fps:.2f} FPS, target {self.target_fps:g}")
        if self.max_latency_ms:
            ms = cost.at(self.percentile)
            if ms * (1 + margin) > self.max_latency_ms:
                reasons.append(f"{self.percentile} {ms:.2f} ms, at most {self.max_latency_ms:g}")
        return reasons + self._heavy(cost)

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
    def bound_memory(self) -> bool:
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
    memory: float = 1.0
    """Measured / predicted memory."""
    p95: float = 1.0
    """95th percentile / median latency within one state of the machine."""
    _pricing: Pricing | None = None

    def pricing(self) -> Pricing:
        """Return the table's predictions, as of its latest samples."""
        if self._pricing is None:
            self._pricing = Pricing(self.table)
        return self._pricing

    def latency(self, state: State) -> Latency:
        """Return what the table predicts for a state's network."""
        architecture = state.architecture(self.space, self.logits)
        if self.table.missing(architecture.entries()):
            self.ensure(architecture)
            self._pricing = None
        return self.pricing().latency(architecture)

    def table_ms(self, state: State) -> float:
        """Return the sustained latency that the table predicts, in milliseconds."""
        return self.latency(state).sustained_ms

    def cost(self, state: State, *, with_memory: bool = True) -> Cost:
        """Return what is predicted; without `with_memory` memory and size are NaN."""
        size = memory = math.nan
        if with_memory:
            architecture = state.architecture(self.space, self.logits)
            size = size_mb(architecture, self.table.conditions.setting)
            if self.table.memory is not None:
                working_set = working_set_mb(architecture)
                memory = self.memory * self.table.memory.predict_mb(size, working_set)
        return cost_of(self.latency(state), size, memory, self.p95)

    def correct(self, state: State, measured: Cost) -> None:
        """Predict anew with what a measured network added to the table's samples."""
        self._pricing = None
        self.p95 = measured.p95_ms / measured.p50_ms
        predicted = self.cost(state)
        if not math.isnan(predicted.memory_mb) and not math.isnan(measured.memory_mb):
            self.memory *= measured.memory_mb / predicted.memory_mb


def refitting(table: LatencyTable) -> Callable[[Architecture], object]:
    """Return what gives a table, by its model, the entries that it lacks of an architecture."""
    return lambda architecture: table.refit(architecture.entries().values())


def cost_of(latency: Latency, size_mb: float, memory_mb: float, p95_share: float) -> Cost:
    """Return the cost of a network from its latency over the machine's states."""
    ms = latency.sustained_ms
    return Cost(
        fps=1000.0 / ms,
        size_mb=size_mb,
        memory_mb=memory_mb,
        p50_ms=ms,
        p95_ms=ms * p95_share,
        typical_fps=1000.0 / latency.typical_ms,
        best_fps=1000.0 / latency.best_ms,
        sd=latency.sd,
    )


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
