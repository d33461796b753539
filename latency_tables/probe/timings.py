"""What timing a batch, or a whole network, gives, and its JSON form.

Needs numpy and the runtime only: the probe carries this file's text.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .machine import Disturbance
from .measure import Round, Timing


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Timings of the models that were interleaved with each other."""

    timings: Mapping[str, Timing]
    references: Mapping[str, Timing]
    rounds: tuple[Round, ...]
    """The machine's state, round by round."""
    disturbance: Disturbance
    load_s: float
    """Seconds spent on loading the models into the runtime."""
    time_s: float
    """Seconds spent on running them."""


@dataclass(frozen=True, slots=True)
class NetworkResult:
    """A whole network, timed as a deployed one is."""

    timing: Timing
    """From image to boxes."""
    references: Mapping[str, Timing]
    """The references, run in between."""
    rounds: tuple[Round, ...]
    disturbance: Disturbance
    load_s: float
    time_s: float

    @property
    def ms(self) -> float:
        """Median latency in milliseconds."""
        return self.timing.ms


def batch_to_json(result: BatchResult) -> dict[str, Any]:
    """Return a batch's result as JSON values."""
    return {"timings": timings_to_json(result.timings), **_shared_to_json(result)}


def batch_from_json(record: Mapping[str, Any]) -> BatchResult:
    """Read what `batch_to_json` gave."""
    return BatchResult(timings_from_json(record["timings"]), *_shared_from_json(record))


def network_to_json(result: NetworkResult) -> dict[str, Any]:
    """Return a network's result as JSON values."""
    return {"timing": asdict(result.timing), **_shared_to_json(result)}


def network_from_json(record: Mapping[str, Any]) -> NetworkResult:
    """Read what `network_to_json` gave."""
    return NetworkResult(Timing(**record["timing"]), *_shared_from_json(record))


def timings_to_json(timings: Mapping[str, Timing]) -> dict[str, Any]:
    """Return timings as JSON values."""
    return {key: asdict(timing) for key, timing in timings.items()}


def timings_from_json(record: Mapping[str, Any]) -> dict[str, Timing]:
    """Read what `timings_to_json` gave."""
    return {key: Timing(**timing) for key, timing in record.items()}


def _shared_to_json(result: BatchResult | NetworkResult) -> dict[str, Any]:
    return {
        "references": timings_to_json(result.references),
        "rounds": [[seen.seconds, dict(seen.reference_ms)] for seen in result.rounds],
        "disturbance": asdict(result.disturbance),
        "load_s": result.load_s,
        "time_s": result.time_s,
    }


def _shared_from_json(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return (
        timings_from_json(record["references"]),
        tuple(Round(seconds, seen) for seconds, seen in record["rounds"]),
        Disturbance(**record["disturbance"]),
        record["load_s"],
        record["time_s"],
    )
