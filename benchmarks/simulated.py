"""A simulated device whose true times are known, disturbed as real shared machines are.

True milliseconds come from a measured table (the one that HEAT ships), changed by a seed: each
family gets its own level, some widths miss their fast kernel (a true step), whole networks have a
factor and an overhead. The machine has states that last seconds to minutes and slow families
differently, spikes, steal time and throttling ramps. Simulated time advances by the duration of
each timing, so that a batch may include several states.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from latency_tables.families import family
from latency_tables.meter import (
    ENTRY_MAX_ROUNDS,
    ENTRY_ROUNDS,
    NETWORK_REPEAT,
    Taken,
    entries_taken,
    moments_of,
    state_of,
)
from latency_tables.probe.batch import NETWORK_ROUNDS
from latency_tables.probe.machine import Disturbance
from latency_tables.probe.measure import Job, Round, time_jobs
from latency_tables.probe.setting import REFERENCES
from latency_tables.probe.timings import BatchResult
from latency_tables.samples import NetworkSample
from latency_tables.table import LatencyTable
from latency_tables.terms import ProbeModel, terms
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.operators.entries import Entry

LOAD_S = 0.02
"""Seconds of writing and loading one probe."""
PROCESS_S = 1.0
"""Seconds of starting a process and loading a network into it."""
REFERENCE_MS = {"network": 15.0, "compute": 3.5, "memory": 1.5, "small": 0.1}
CAP_MS = 0.02
"""Fixed cost of a run."""
SPIKE = 1.6
NETWORK_SD = 0.01
"""Relative deviation of a network that its sum of entries does not explain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """A level of disturbance."""

    name: str
    jitter: float
    """Relative standard deviation of one run."""
    spikes: float
    """Share of runs that are slowed by a spike."""
    states: float
    """Size of state changes, in log units: 0.4 is +-50 %."""
    state_s: float
    """Mean duration of a state in seconds."""
    ramp: float = 0.0
    """Throttling: slowdown that builds up over a minute, in log units."""


LEVELS = (
    Noise(name="quiet", jitter=0.01, spikes=0.01, states=0.03, state_s=60.0),
    Noise(name="shared", jitter=0.03, spikes=0.05, states=0.2, state_s=20.0),
    Noise(name="stormy", jitter=0.06, spikes=0.1, states=0.4, state_s=12.0, ramp=0.15),
)


@dataclass(slots=True)
class Machine:
    """The simulated device."""

    truth_ms: dict[Entry, float]
    noise: Noise
    seed: int
    clock_s: float = 0.0
    factor: float = 1.0
    overhead_ms: float = 0.01
    _rng: np.random.Generator = field(init=False)
    _state: float = field(init=False, default=0.0)
    _until_s: float = field(init=False, default=0.0)
    _owners: dict[ProbeModel, Entry] = field(init=False)
    _shares: dict[str, float] = field(init=False, default_factory=dict)
    _own: dict[Architecture, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        """Draw the properties of the device."""
        self._rng = np.random.default_rng([self.seed, 1])
        self._owners = {next(iter(terms(entry))): entry for entry in self.truth_ms}

    @classmethod
    def of(cls, table: LatencyTable, noise: Noise, seed: int) -> "Machine":
        """Draw a device like the one of a measured table."""
        rng = np.random.default_rng([seed, 0])
        levels: dict[str, float] = {}
        steps: dict[tuple[str, int], float] = {}
        truth = {}
        for entry, row in sorted(table.rows.items()):
            level = levels.setdefault(family(entry), float(np.exp(rng.normal(0, 0.25))))
            key = (family(entry), entry.d_out)
            if key not in steps:
                # Every twelfth width misses its family's fast kernel.
                steps[key] = 1.25 if rng.random() < 1 / 12 else 1.0
            truth[entry] = max(0.002, row.ms) * level * steps[key]
        machine = cls(truth, noise, seed)
        machine.factor = float(np.exp(rng.normal(0, 0.05)))
        return machine

    def network_ms(self, network: Architecture) -> float:
        """Return a network's true milliseconds in the machine's usual state."""
        if network not in self._own:
            name = f"{network.widths} {network.blocks}"
            rng = np.random.default_rng([self.seed, 3, *name.encode()])
            self._own[network] = float(np.exp(rng.normal(0, NETWORK_SD)))
        entries = network.entries().values()
        total = self.factor * sum(self.truth_ms[entry] for entry in entries)
        return (total + self.overhead_ms * len(entries)) * self._own[network]

    def probe_ms(self, probe: ProbeModel) -> float:
        """Return a probe's true milliseconds, such that `terms` give the entry's."""
        e = probe.entry
        cap = CAP_MS + 1e-7 * e.d_in * e.h * e.w
        if probe.kind == "cap":
            return CAP_MS + probe.count * (cap - CAP_MS)
        if probe.kind == "chain":
            return CAP_MS + probe.count * self.truth_ms[e]
        return self._sandwich_ms(probe)

    def _sandwich_ms(self, probe: ProbeModel) -> float:
        """Return a probe's milliseconds such that all terms of its entry add up to the truth."""
        owner = self._owners.get(probe, probe.entry)
        others = [(sign, p) for p, sign in terms(owner).items() if p != probe]
        return self.truth_ms[owner] - sum(sign * self.probe_ms(p) for sign, p in others)

    def run_ms(self, name: str, true_ms: float) -> float:
        """Run once: return the observed milliseconds, and advance the clock."""
        slow = self._slowness(name)
        sample = true_ms * math.exp(slow + self._rng.normal(0, self.noise.jitter))
        if self._rng.random() < self.noise.spikes:
            sample *= float(self._rng.uniform(1.0, SPIKE))
        self.clock_s += sample / 1e3
        return float(sample)

    def _slowness(self, name: str) -> float:
        if self.clock_s >= self._until_s:
            self._state = float(self._rng.normal(0, self.noise.states))
            self._until_s = self.clock_s + float(self._rng.exponential(self.noise.state_s))
        ramp = self.noise.ramp * min(1.0, self.clock_s / 60.0)
        return (self._state + ramp) * self.share(name)

    def share(self, name: str) -> float:
        """Return the sensitivity of a family or a reference to the machine's state."""
        return self._shares.setdefault(name, self._share(name))

    def network_name(self, network: Architecture) -> str:
        """Return a network's name; its sensitivity is its operators' mean by shares of time."""
        name = f"{network.widths} {network.blocks}"
        if name not in self._shares:
            entries = network.entries().values()
            total = sum(self.truth_ms[entry] for entry in entries)
            self._shares[name] = (
                sum(self.truth_ms[entry] * self.share(family(entry)) for entry in entries) / total
            )
        return name

    def _share(self, name: str) -> float:
        fixed = {"network": 1.0, "compute": 0.7, "memory": 1.4, "small": 1.0}
        if name in fixed:
            return fixed[name]
        rng = np.random.default_rng([self.seed, 2, *name.encode()])
        return float(rng.uniform(0.7, 1.3))


class SimulatedJob:
    """A session that runs on the simulated machine."""

    def __init__(self, machine: Machine, name: str, true_ms: float) -> None:
        """Take the name of the family or reference, and its true milliseconds."""
        self._machine, self._name, self._ms = machine, name, true_ms

    def run(self, inputs: object) -> list[object]:
        """Run untimed."""
        self._machine.run_ms(self._name, self._ms)
        return []

    def timed(self, inputs: object) -> float:
        """Run and return the observed milliseconds."""
        return self._machine.run_ms(self._name, self._ms)


class SimulatedMeter:
    """The meter of this version on the simulated machine."""

    def __init__(self, machine: Machine) -> None:
        """Measure on this machine."""
        self.machine = machine

    def references(self) -> dict[str, Job]:
        """Return the references as jobs."""
        return {
            name: Job(SimulatedJob(self.machine, name, ms), {}) for name, ms in REFERENCE_MS.items()
        }

    def entries(self, entries: Sequence[Entry]) -> Taken:
        """Time entries as `DeviceMeter` does."""
        return entries_taken(entries, self.batch(entries, ENTRY_ROUNDS, ENTRY_MAX_ROUNDS))

    def batch(self, entries: Sequence[Entry], rounds: int, max_rounds: int) -> BatchResult:
        """Time the probes of entries and the references, interleaved."""
        jobs: dict[str, Job] = {}
        for entry in entries:
            for probe in terms(entry):
                job = SimulatedJob(self.machine, family(entry), self.machine.probe_ms(probe))
                jobs[probe.key] = Job(job, {})
        self.machine.clock_s += LOAD_S * len(jobs)
        beside = {f"reference-{name}": job for name, job in self.references().items()}
        watched: list[Round] = []
        start = self.machine.clock_s
        found = time_jobs(
            {**jobs, **beside},
            references=beside,
            rounds=rounds,
            max_rounds=max_rounds,
            watched=watched,
        )
        spent = self.machine.clock_s - start
        seen = tuple(
            Round(
                spent / len(watched),
                {name: r.reference_ms[f"reference-{name}"] for name in REFERENCES},
            )
            for r in watched
        )
        references = {name: found[f"reference-{name}"] for name in REFERENCES}
        timings = {key: found[key] for key in jobs}
        return BatchResult(timings, references, seen, Disturbance(0, 0, 0, 0), 0.0, spent)

    def network(self, architecture: Architecture, seed: int = 0) -> Taken:
        """Time a whole network as `DeviceMeter` does."""
        self.machine.clock_s += PROCESS_S
        name = self.machine.network_name(architecture)
        job = Job(SimulatedJob(self.machine, name, self.machine.network_ms(architecture)), {})
        beside = {f"reference-{key}": item for key, item in self.references().items()}
        watched: list[Round] = []
        start = self.machine.clock_s
        found = time_jobs(
            {"own": job, **beside}, references=beside, rounds=NETWORK_ROUNDS, watched=watched
        )
        spent = (self.machine.clock_s - start) / len(watched)
        seen = tuple(
            Round(spent, {name: r.reference_ms[f"reference-{name}"] for name in REFERENCES})
            for r in watched
        )
        timing = found["own"]
        sample = NetworkSample(
            architecture,
            timing.ms,
            math.hypot(timing.sd_ms / timing.ms, NETWORK_REPEAT),
            state_of({name: found[f"reference-{name}"] for name in REFERENCES}),
            "simulated",
        )
        return Taken(networks=(sample,), moments=moments_of(seen))

    def peak_mb(self, architecture: Architecture, seed: int = 0) -> float | None:
        """Return None: memory is not simulated."""
        return None
