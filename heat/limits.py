"""What a thinned network may cost, and what it is predicted to cost."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from latency_tables.costs import size_mb, working_set_mb
from latency_tables.table import LatencyTable
from supernet.architecture import Architecture
from supernet.errors import UserError
from supernet.supernet import SearchSpace

from .thinning import Logits, State


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the deployed network must keep."""

    target_fps: float
    """Frames per second, batch 1."""
    max_memory_mb: float | None = None
    """Peak resident memory of the process that runs it, MiB."""
    max_size_mb: float | None = None
    """Size of the ONNX file, MiB."""

    def __post_init__(self) -> None:
        """Refuse what is no limit."""
        for flag, value in (
            ("--target-fps", self.target_fps),
            ("--max-memory-mb", self.max_memory_mb),
            ("--max-size-mb", self.max_size_mb),
        ):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UserError(f"{flag} {value:g}: a positive number is needed")

    def broken(self, cost: "Cost", margin: float = 0.0) -> list[str]:
        """Say which limits a cost exceeds; the frame rate must pass its target by the margin."""
        said = []
        if cost.fps < self.target_fps * (1 + margin):
            said.append(f"{cost.fps:.2f} FPS, target {self.target_fps:g}")
        for what, value, limit in (
            ("memory", cost.memory_mb, self.max_memory_mb),
            ("size", cost.size_mb, self.max_size_mb),
        ):
            if limit is not None and value > limit:
                said.append(f"{what} {value:.1f} MiB, at most {limit:g}")
        return said


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network costs, predicted or measured."""

    fps: float
    size_mb: float
    memory_mb: float
    """NaN where the table has no memory model."""


@dataclass(slots=True)
class Pricer:
    """Predicts the cost of states, and takes corrections from measured networks."""

    table: LatencyTable
    space: SearchSpace
    logits: Logits
    ensure: Callable[[Architecture], object]
    """Sees to it that the table has an architecture's entries."""
    speed: float = 1.0
    """Measured / predicted latency of the networks measured so far."""
    memory: float = 1.0
    """Measured / predicted memory."""
    _known_ms: dict[tuple[object, ...], float] = field(default_factory=dict)

    def latency_ms(self, state: State) -> float:
        """Return the predicted latency."""
        architecture = state.architecture(self.space, self.logits)
        key = (architecture.widths, architecture.blocks)
        if key not in self._known_ms:
            self.ensure(architecture)
            self._known_ms[key] = self.table.predict_ms(architecture)
        return self._known_ms[key] * self.speed

    def cost(self, state: State) -> Cost:
        """Return everything that is predicted."""
        architecture = state.architecture(self.space, self.logits)
        size = size_mb(architecture, self.table.conditions.setting)
        memory = math.nan
        if self.table.memory is not None:
            memory = self.memory * self.table.memory.predict_mb(size, working_set_mb(architecture))
        return Cost(1000.0 / self.latency_ms(state), size, memory)
