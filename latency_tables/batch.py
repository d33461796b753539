"""Loads a batch of models in a runtime and times them against each other and the reference.

Needs numpy and the runtime only: the probe carries this file's text.
"""

import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.runtimes import dominant, executed_precision, open_session
from supernet.errors import UserError

from .machine import Disturbance, Watch
from .measure import MAX_ROUNDS, ROUNDS, RUNS_A_VISIT, Job, Round, Timing, time_jobs

Shapes = Mapping[str, tuple[tuple[int, ...], str]]
"""Shape and dtype of each input by name."""

NETWORK_ROUNDS = 12
"""Rounds of a whole network: few models, so more of them."""
NETWORK_MIN_ROUNDS = 6
NETWORK_S = 2.0
"""Seconds of a network's own runs above which it has fewer rounds, on slow machines."""

REFERENCES = ("network", "compute", "memory", "small")
"""Models that tell the state of the machine, timed in every batch (`references.py`)."""


@dataclass(frozen=True, slots=True)
class Model:
    """An ONNX model and the inputs it takes."""

    onnx: bytes
    inputs: Shapes
    module: Any = None
    """The same as a torch module, where torch is the runtime."""
    file: Path | None = None
    """A file of it, in any format that the runtime reads, in the place of `onnx`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """How models are executed."""

    runtime: str
    precision: str
    threads: int
    device: str = "cpu"
    """cpu or cuda."""
    spinning: str = "brief"
    """How ONNX Runtime's threads wait: brief, always (as it does by itself) or never."""
    pinning: bool = False
    """Whether each thread is kept on one core."""

    @property
    def spins(self) -> bool | None:
        """Whether threads that wait spin, as `open_session` takes it: None for briefly."""
        return {"always": True, "never": False}.get(self.spinning)

    @property
    def graph_precision(self) -> str:
        """The precision that the graph itself must be written in; the rest is the runtime's.

        OpenVINO computes a float32 graph in half precision by itself; the others take what they
        are given.
        """
        if self.precision == "int8" or self.runtime in ("onnxruntime", "tensorrt"):
            return self.precision
        return "f32"


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


class Bench:
    """One runtime on this machine, with the reference models loaded."""

    def __init__(self, setting: Setting, references: Mapping[str, Model]) -> None:
        """Load the references and start watching the machine."""
        self.setting = setting
        self._references = {
            key_of(name): load(model, setting) for name, model in references.items()
        }
        self._watch = Watch()

    def close(self) -> None:
        """Give the references back."""
        for job in self._references.values():
            job.session.close()

    def run(
        self, models: Mapping[str, Model], *, rounds: int = ROUNDS, max_rounds: int = MAX_ROUNDS
    ) -> BatchResult:
        """Time models and the references, interleaved."""
        start = time.perf_counter()
        jobs = {key: load(model, self.setting) for key, model in models.items()}
        return self._time(jobs, time.perf_counter() - start, rounds, max_rounds)

    def network(self, model: Model) -> NetworkResult:
        """Time a whole network, the references between its runs."""
        start = time.perf_counter()
        job = load(model, self.setting)
        load_s = time.perf_counter() - start
        job.session.run(job.feeds)
        visit_ms = (RUNS_A_VISIT + 1) * max(job.session.timed(job.feeds), 1e-3)
        rounds = max(NETWORK_MIN_ROUNDS, min(NETWORK_ROUNDS, int(NETWORK_S * 1e3 / visit_ms)))
        found = self._time({"network": job}, load_s, rounds, 2 * rounds)
        return NetworkResult(
            found.timings["network"],
            found.references,
            found.rounds,
            found.disturbance,
            found.load_s,
            found.time_s,
        )

    def _time(
        self, jobs: dict[str, Job], load_s: float, rounds: int, max_rounds: int
    ) -> BatchResult:
        """Time loaded models; they are closed afterwards."""
        names = list(jobs)
        start = time.perf_counter()
        watched: list[Round] = []
        timings = time_jobs(
            {**jobs, **self._references},
            references=self._references,
            rounds=rounds,
            max_rounds=max_rounds,
            watched=watched,
        )
        timed = time.perf_counter()
        for job in jobs.values():
            job.session.close()
        jobs.clear()
        gc.collect()
        return BatchResult(
            {key: timings[key] for key in names},
            {name: timings[key_of(name)] for name in self._names},
            self._by_name(watched),
            self._watch.read(),
            load_s,
            timed - start,
        )

    @property
    def _names(self) -> list[str]:
        return [key.removeprefix(REFERENCE_PREFIX) for key in self._references]

    def _by_name(self, watched: Sequence[Round]) -> tuple[Round, ...]:
        return tuple(
            Round(
                seen.seconds,
                {key.removeprefix(REFERENCE_PREFIX): ms for key, ms in seen.reference_ms.items()},
            )
            for seen in watched
        )


REFERENCE_PREFIX = "reference-"


def key_of(reference: str) -> str:
    """Return the key of a reference among the models of a batch or a pack."""
    return f"{REFERENCE_PREFIX}{reference}"


def load(model: Model, setting: Setting) -> Job:
    """Open a session and make up its inputs."""
    if setting.runtime == "torch":
        from .torch_session import TorchSession

        if model.module is None:
            raise UserError("torch profiles only where HEAT is: heat profile --runtime torch there")
        return Job(TorchSession(model.module, setting), feeds_of(model.inputs))
    session = open_session(
        setting.runtime,
        model.file or model.onnx,
        setting.threads,
        setting.precision,
        setting.device,
        spinning=setting.spins,
        pinning=setting.pinning,
    )
    return Job(session, feeds_of(model.inputs))


def feeds_of(inputs: Shapes) -> dict[str, Any]:
    """Draw random inputs."""
    rng = np.random.default_rng(0)
    return {
        name: rng.integers(0, 256, shape, dtype=np.uint8)
        if dtype == "uint8"
        else rng.standard_normal(shape, dtype=np.float32)
        for name, (shape, dtype) in inputs.items()
    }


def precision_of(model: Model, setting: Setting) -> str:
    """Run a model once and return the precision that the runtime executed most of it in."""
    job = load(model, setting)
    with job.session as session:
        if setting.device == "cuda" or setting.runtime == "torch":
            return dominant(session.executed(job.feeds))  # type: ignore[attr-defined]
    found = executed_precision(
        setting.runtime, model.onnx, setting.threads, setting.precision, job.feeds
    )
    return dominant(found)


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
