"""The JSON documents of a probe: the manifest of its pack, and the records of its results file.

Plain types only: the probe carries this file's text. Classes that are `final` tell the records of
a results file apart by a key that only one of them has.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict, final

InputShapes = Mapping[str, tuple[Sequence[int], str]]
"""Shape and dtype of each input of a model by name; a pair is a list in JSON."""


class TimingRecord(TypedDict):
    """A `Timing`."""

    ms: float
    min_ms: float
    p95_ms: float
    spread: float
    n: int
    interval: float


RoundRecord = tuple[float, dict[str, float]]
"""A `Round`: its seconds, and milliseconds of each reference; the pair is a list in JSON."""


class DisturbanceRecord(TypedDict):
    """A `Disturbance`."""

    other_load: float
    stolen: float
    throttled: int
    slowdown: float


class SettingRecord(TypedDict):
    """A `Setting`."""

    runtime: str
    precision: str
    threads: int
    device: str
    spinning: str
    pinning: bool


class CpuRecord(TypedDict):
    """A `Detected`: the machine without its GPUs."""

    model: str
    cores: int
    quota: float | None
    governor: str
    flags: Sequence[str]
    memory_mb: int


class GpuRecord(TypedDict):
    """A `Gpu`."""

    model: str
    driver: str
    clocks: str
    clock_now: str
    memory_mb: int


class Plan(TypedDict):
    """What a pack asks a device to measure; HEAT reads it back from the results."""

    device: str
    """Name of the declared device."""
    setting: SettingRecord
    size: Sequence[int]
    """Height and width of the image in pixels."""
    forms: int
    """`FORMS_VERSION` of the operators."""
    entries: Sequence[Sequence[Mapping[str, Any]]]
    """Fields of each `Entry`, batch by batch."""
    networks: Sequence[Mapping[str, object]]
    """Whole networks, for `Architecture.from_dict`."""
    checks: Mapping[str, object]
    """Fields of `Checks`; not read back."""
    space: Mapping[str, object]
    """The search space, for `SearchSpace.from_dict`."""


class Manifest(TypedDict):
    """`manifest.json` of a pack."""

    probe: str
    """Version of the probe: a hash of its text."""
    pack: str
    """Hash of the plan."""
    plan: Plan
    setting: SettingRecord
    batches: list[list[str]]
    """Keys of the models that are timed together."""
    networks: list[str]
    """Keys of the whole networks."""
    peaks: list[str]
    """Those of them whose peak memory is measured."""
    inputs: Mapping[str, InputShapes]
    """Inputs of each model by its key."""


@final
class Header(TypedDict):
    """First record of a results file: what was measured, on which machine, by which probe."""

    results_format: int
    pack: str
    probe: str
    plan: Plan
    setting: SettingRecord
    machine: CpuRecord
    gpus: list[GpuRecord]
    runtime_version: str
    executed: str
    """Precision that the runtime executed."""


class Measured(TypedDict):
    """Common part of the records of batches and of networks."""

    references: dict[str, TimingRecord]
    rounds: list[RoundRecord]
    disturbance: DisturbanceRecord
    load_s: float
    time_s: float
    date: str
    """Day of the measurement."""


@final
class BatchRecord(Measured):
    """Timings of one batch."""

    batch: NotRequired[int]
    """Its index in the plan; absent outside results files."""
    timings: dict[str, TimingRecord]


@final
class NetworkRecord(Measured):
    """Timing of one whole network."""

    network: NotRequired[str]
    """Its key in the pack; absent outside results files, as is `peak_mb`."""
    timing: TimingRecord
    peak_mb: NotRequired[float]
    """Peak resident memory in MiB, of the networks in the manifest's `peaks`."""


Record = Header | BatchRecord | NetworkRecord
