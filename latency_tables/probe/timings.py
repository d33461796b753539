"""Results of timing a batch or a whole network, and their JSON form (`records.py`).

Needs numpy and the runtime only: the probe carries this file's text.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .machine import Disturbance
from .measure import Round, Timing
from .records import BatchRecord, Measured, NetworkRecord, RoundRecord, TimingRecord


def today() -> str:
    """Return the day of a measurement that is made now, as 2026-11-30."""
    return time.strftime("%Y-%m-%d")


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Timings of the models that were interleaved with each other."""

    timings: Mapping[str, Timing]
    references: Mapping[str, Timing]
    rounds: tuple[Round, ...]
    """The reference models, round by round: the machine's state."""
    disturbance: Disturbance
    load_s: float
    """Seconds spent loading the models into the runtime."""
    time_s: float
    """Seconds spent running them."""
    date: str = field(default_factory=today)
    """Day of the measurement."""


@dataclass(frozen=True, slots=True)
class NetworkResult:
    """Timing of a whole network as it is deployed."""

    timing: Timing
    """From uint8 image to boxes."""
    references: Mapping[str, Timing]
    """The reference models, run in between."""
    rounds: tuple[Round, ...]
    disturbance: Disturbance
    load_s: float
    time_s: float
    date: str = field(default_factory=today)

    @property
    def ms(self) -> float:
        """Median latency in milliseconds."""
        return self.timing.ms


def batch_to_json(result: BatchResult) -> BatchRecord:
    """Return a batch's result as JSON values."""
    return {
        "timings": timings_to_json(result.timings),
        "references": timings_to_json(result.references),
        "rounds": _rounds_to_json(result.rounds),
        "disturbance": result.disturbance.to_json(),
        "load_s": result.load_s,
        "time_s": result.time_s,
        "date": result.date,
    }


def batch_from_json(record: BatchRecord) -> BatchResult:
    """Read the result of `batch_to_json`."""
    return BatchResult(timings_from_json(record["timings"]), *_shared_from_json(record))


def network_to_json(result: NetworkResult) -> NetworkRecord:
    """Return a network's result as JSON values."""
    return {
        "timing": result.timing.to_json(),
        "references": timings_to_json(result.references),
        "rounds": _rounds_to_json(result.rounds),
        "disturbance": result.disturbance.to_json(),
        "load_s": result.load_s,
        "time_s": result.time_s,
        "date": result.date,
    }


def network_from_json(record: NetworkRecord) -> NetworkResult:
    """Read the result of `network_to_json`."""
    return NetworkResult(Timing(**record["timing"]), *_shared_from_json(record))


def timings_to_json(timings: Mapping[str, Timing]) -> dict[str, TimingRecord]:
    """Return timings as JSON values."""
    return {key: timing.to_json() for key, timing in timings.items()}


def timings_from_json(record: Mapping[str, TimingRecord]) -> dict[str, Timing]:
    """Read the result of `timings_to_json`."""
    return {key: Timing(**timing) for key, timing in record.items()}


def _rounds_to_json(rounds: Sequence[Round]) -> list[RoundRecord]:
    return [(seen.seconds, dict(seen.reference_ms)) for seen in rounds]


def _shared_from_json(
    record: Measured,
) -> tuple[dict[str, Timing], tuple[Round, ...], Disturbance, float, float, str]:
    return (
        timings_from_json(record["references"]),
        tuple(Round(seconds, reference_ms) for seconds, reference_ms in record["rounds"]),
        Disturbance(**record["disturbance"]),
        record["load_s"],
        record["time_s"],
        record["date"],
    )
