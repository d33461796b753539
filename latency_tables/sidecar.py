"""What the JSON file beside a table's CSV holds, as far as it is read back."""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from .probe.records import CpuRecord, GpuRecord


class EstimateErrors(TypedDict, total=False):
    """Errors of estimates, as `benchmarks/estimate_error.py` found them.

    Medians over whole networks of |by the estimate / by the measured table - 1|.
    """

    other_setting: float | None
    """With coefficients fitted on tables of any other setting."""
    other_runtime: float | None
    """With coefficients fitted on tables of other runtimes only."""
    few_shot_10: float | None
    """The latter, corrected by ten measured rows."""
    note: str


class EstimateFacts(TypedDict):
    """How an estimated table was made."""

    figures: Mapping[str, object]
    """The device's published figures (`Figures`)."""
    fitted_on: list[str]
    """Tables that the coefficients were fitted on."""
    error: EstimateErrors
    not_fitted: dict[str, str]
    """Operators without coefficients of their own, and those whose coefficients were used."""
    published: NotRequired["PublishedFacts | None"]
    """Correction by networks that others have timed on the device; None where there are none."""


class PublishedFacts(TypedDict):
    """A `Correction`."""

    factor: float
    overhead_ms: float
    """Of a frame, in the rows of `preprocess`."""
    overhead_of_these_points_ms: float
    runtime: str
    """Runtime that the points were timed in, not the one that is estimated."""
    precision: str
    points: dict[str, float]
    """Published milliseconds by network."""
    leave_one_out: dict[str, float]
    """Of each point, predicted by the others: predicted / published - 1."""
    sources: list[str]


class Facts(TypedDict, total=False):
    """Provenance of a table: on which machine and under what load it was made."""

    detected: CpuRecord
    """The machine that was measured, without its GPUs."""
    gpu: GpuRecord
    """The GPU that was measured."""
    gpus: Sequence[GpuRecord]
    """All GPUs of a machine that was measured by the probe."""
    disturbance: dict[str, float]
    """The fields of `Disturbance`, each at its worst over all batches."""
    seconds: dict[str, float]
    """Seconds spent on writing, loading and timing models."""
    threads: Mapping[str, Mapping[str, float]]
    """`ThreadTiming` by number of threads."""
    estimate: EstimateFacts
    few_shot: Mapping[str, float | None]
    """Error of an estimate before and after its correction by measured rows."""


class CheckRecord(TypedDict):
    """A `Check`."""

    predicted_ms: float
    sd: float
    measured_ms: float


class OldCheckRecord(TypedDict):
    """A check of a table of version 2."""

    sum_ms: float
    entries: int
    measured_ms: float


class CalibrationRecord(TypedDict):
    """A `Calibration`."""

    factor: float
    overhead_ms: float
    checks: NotRequired[list[CheckRecord]]
    """Absent in version 2."""
    held_out: NotRequired[list[OldCheckRecord]]
    """In version 2 only, instead of `checks`."""


class MemorySampleRecord(TypedDict):
    """A `MemorySample`, in MiB."""

    size_mb: float
    working_set_mb: float
    peak_mb: float


class MemoryRecord(TypedDict):
    """A `MemoryModel`."""

    base_mb: float
    per_size: float
    per_working_set: float
    anchors: list[MemorySampleRecord]
    held_out: list[MemorySampleRecord]


class NetworkSampleRecord(TypedDict):
    """A `NetworkSample`."""

    architecture: Mapping[str, object]
    """For `Architecture.from_dict`."""
    ms: float
    sd: float
    state: list[float]
    date: str


class TableSidecar(TypedDict):
    """The whole file."""

    format: int
    seal: NotRequired[str]
    """Of the CSV that was written after it; absent in older files."""
    conditions: Mapping[str, Any]
    """Fields of `Conditions`; a version that lacked some reads as their defaults."""
    calibration: CalibrationRecord
    memory: MemoryRecord | None
    facts: Facts
    samples: list[list[Any]]
    """Of each `EntrySample` the values of its entry's columns, then the other fields in order.

    Absent in version 2, as are `networks` and `history`.
    """
    networks: list[NetworkSampleRecord]
    history: list[list[float]]
    """Of each `Moment` its seconds, then its state."""
