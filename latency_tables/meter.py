"""Times entries and whole networks on this machine, and returns samples of them.

`profile.py` fills a table through the `Meter` interface, so that another meter can simulate a
device.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from deploy.own_process import module_command
from supernet.errors import DeviceError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.operators.entries import Entry
from supernet.version import __version__

from .conditions import Conditions
from .models import write, write_network
from .probe.batch import Bench, precision_of
from .probe.fresh import peak_mb, time_network
from .probe.machine import Disturbance
from .probe.measure import Round, Timing
from .probe.setting import REFERENCES, Model
from .probe.timings import BatchResult, NetworkResult
from .references import reference_models
from .samples import EntrySample, NetworkSample, State
from .table import Moment
from .terms import ProbeModel, terms

FRESH_COMMAND = module_command("latency_tables.probe.fresh")
"""Command of the fresh process that measures a whole network."""

ENTRY_ROUNDS = 4
ENTRY_MAX_ROUNDS = 6
"""Rounds of a batch of entries: few, since entries that need more certainty are timed again."""
REPEAT = 0.01
"""Relative repeatability of a probe at best, from one process or batch to the next."""
NETWORK_REPEAT = 0.007
"""Relative repeatability of a network at best, from one process to the next."""
KEPT_BYTES = 128 * 2**20
"""Written probes kept in memory: most are timed in three batches or more."""


@dataclass(frozen=True, slots=True)
class Taken:
    """Result of one visit to the device."""

    samples: tuple[EntrySample, ...] = ()
    networks: tuple[NetworkSample, ...] = ()
    moments: tuple[Moment, ...] = ()
    disturbance: Disturbance | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds spent on writing, loading and timing models: write, load, time."""


class Meter(Protocol):
    """A device that can be timed."""

    def entries(self, entries: Sequence[Entry]) -> Taken:
        """Time entries against each other and the references."""

    def network(self, architecture: Architecture, seed: int = 0) -> Taken:
        """Time a whole deployed network with random weights."""

    def peak_mb(self, architecture: Architecture, seed: int = 0) -> float | None:
        """Return the peak memory in MiB of a process that runs a network; None if unknown."""


class DeviceMeter:
    """This machine, through the runtime of a table's conditions."""

    def __init__(self, conditions: Conditions, *, check: bool = True) -> None:
        """Write the references and, with `check`, verify the precision that the runtime executes.

        Raises `DeviceError` where it executes another precision than the conditions'.
        """
        self.setting = setting = conditions.setting
        self._references = reference_models(conditions.input_size, setting)
        executed = setting.precision
        if check:
            executed = precision_of(self._references["network"], setting)
        if executed != setting.precision:
            raise DeviceError(
                f"{setting.runtime} executes {setting.precision} as {executed} on "
                f"{conditions.model}: use --precision {executed}"
            )
        self._bench: Bench | None = None
        self._written: dict[str, Model] = {}
        self._room = KEPT_BYTES

    def bench(self) -> Bench:
        """Return the bench of this process; the references are loaded on the first call."""
        self._bench = self._bench or Bench(self.setting, self._references)
        return self._bench

    def entries(self, entries: Sequence[Entry]) -> Taken:
        """Time entries against each other and the references."""
        start = time.perf_counter()
        probes = {probe.key: probe for entry in entries for probe in terms(entry)}
        models = {key: self._model(probe) for key, probe in probes.items()}
        written = time.perf_counter() - start
        result = self.bench().run(models, rounds=ENTRY_ROUNDS, max_rounds=ENTRY_MAX_ROUNDS)
        return entries_taken(entries, result, written)

    def _model(self, probe: ProbeModel) -> Model:
        """Write a probe's model, once where memory suffices; the first ones are kept.

        Torch's have no file, and are built anew.
        """
        kept = self._written.get(probe.key)
        if kept is not None:
            return kept
        model = write(probe, self.setting)
        if model.onnx and len(model.onnx) <= self._room:
            self._written[probe.key] = model
            self._room -= len(model.onnx)
        return model

    def watch(self, seconds: float) -> Taken:
        """Time the references alone, to follow the machine's state."""
        found: list[Moment] = []
        end = time.monotonic() + seconds
        while not found or time.monotonic() < end:
            found.extend(moments_of(self.bench().run({}, rounds=ENTRY_ROUNDS).rounds))
        return Taken(moments=tuple(found), seconds={"time": seconds})

    def network(self, architecture: Architecture, seed: int = 0) -> Taken:
        """Time a whole deployed network with random weights, in a process of its own."""
        start = time.perf_counter()
        model = write_network(architecture, self.setting, seed=seed)
        written = time.perf_counter() - start
        return network_taken(architecture, self.time(model), written)

    def time(self, model: Model) -> NetworkResult:
        """Time a whole model interleaved with the references."""
        if model.opener is not None:  # torch's networks live in this process
            return self.bench().network(model)
        return time_network(model, self._references, self.setting, FRESH_COMMAND)

    def peak_mb(self, architecture: Architecture, seed: int = 0) -> float | None:
        """Return the peak memory in MiB of a process that runs a network; None for torch."""
        model = write_network(architecture, self.setting, seed=seed)
        return peak_mb(model, self.setting, FRESH_COMMAND) if model.onnx else None


def entries_taken(entries: Sequence[Entry], result: BatchResult, written_s: float = 0.0) -> Taken:
    """Return samples of entries from the timings of their probes."""
    state = state_of(result.references)
    samples = []
    for entry in entries:
        parts = [(sign, result.timings[probe.key]) for probe, sign in terms(entry).items()]
        spread = [sign * timing.sd_ms for sign, timing in parts]
        spread += [REPEAT * sign * timing.ms for sign, timing in parts]
        ms = sum(sign * timing.ms for sign, timing in parts)
        samples.append(EntrySample(entry, ms, math.hypot(*spread), state, result.date, __version__))
    return Taken(
        samples=tuple(samples),
        moments=moments_of(result.rounds),
        disturbance=result.disturbance,
        seconds={"write": written_s, "load": result.load_s, "time": result.time_s},
    )


def network_taken(
    architecture: Architecture, result: NetworkResult, written_s: float = 0.0
) -> Taken:
    """Return a sample of a whole network from its timing."""
    timing = result.timing
    sample = NetworkSample(
        architecture,
        timing.ms,
        math.hypot(timing.sd_ms / timing.ms, NETWORK_REPEAT),
        state_of(result.references),
        result.date,
    )
    return Taken(
        networks=(sample,),
        moments=moments_of(result.rounds),
        disturbance=result.disturbance,
        seconds={"write": written_s, "load": result.load_s, "time": result.time_s},
    )


def state_of(references: Mapping[str, Timing]) -> State:
    """Return the machine's state from the references' timings."""
    return tuple(references[name].ms for name in REFERENCES)


def moments_of(rounds: Sequence[Round]) -> tuple[Moment, ...]:
    """Return the machine's states, one for each round."""
    return tuple(
        Moment(seen.seconds, tuple(seen.reference_ms[name] for name in REFERENCES))
        for seen in rounds
    )
