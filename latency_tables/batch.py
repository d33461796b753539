"""Loads a batch of models in a runtime and times them against each other and the reference.

Needs numpy and the runtime only: the probe carries this file's text.
"""

import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.runtimes import dominant, executed_precision, open_session
from supernet.errors import UserError

from .machine import Disturbance, Watch
from .measure import MAX_ROUNDS, Job, Timing, time_jobs

Shapes = Mapping[str, tuple[tuple[int, ...], str]]
"""Shape and dtype of each input by name."""

NETWORK_ROUNDS = 12
"""Rounds of a whole network: few models, so more of them."""

REFERENCE = "reference"
"""Key of the reference network in every batch."""


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
    reference: Timing
    disturbance: Disturbance
    load_s: float
    """Seconds spent on loading the models into the runtime."""
    time_s: float
    """Seconds spent on running them."""


@dataclass(frozen=True, slots=True)
class NetworkResult:
    """A whole network, timed as a deployed one is."""

    ms: float
    """From image to boxes, median."""
    p95_ms: float
    reference_ms: float
    """The reference network, run in between."""
    disturbance: Disturbance
    load_s: float
    time_s: float


class Bench:
    """One runtime on this machine, with the reference network loaded."""

    def __init__(self, setting: Setting, reference: Model) -> None:
        """Load the reference network and start watching the machine."""
        self.setting = setting
        self._reference = load(reference, setting)
        self._watch = Watch()

    def reference_ms(self) -> float:
        """Time the reference network alone: how fast is the machine now?"""
        return time_jobs({REFERENCE: self._reference})[REFERENCE].ms

    def run(self, models: Mapping[str, Model], *, max_rounds: int = MAX_ROUNDS) -> BatchResult:
        """Time models and the reference, interleaved."""
        start = time.perf_counter()
        jobs = {key: load(model, self.setting) for key, model in models.items()}
        jobs[REFERENCE] = self._reference
        loaded = time.perf_counter()
        timings = time_jobs(jobs, max_rounds=max_rounds)
        timed = time.perf_counter()
        del jobs
        gc.collect()
        reference = timings.pop(REFERENCE)
        return BatchResult(timings, reference, self._watch.read(), loaded - start, timed - loaded)

    def network(self, model: Model) -> NetworkResult:
        """Time a whole network, the reference between its runs."""
        start = time.perf_counter()
        jobs = {"network": load(model, self.setting), REFERENCE: self._reference}
        loaded = time.perf_counter()
        timings = time_jobs(jobs, rounds=NETWORK_ROUNDS)
        timed = time.perf_counter()
        own = timings["network"]
        return NetworkResult(
            own.ms,
            own.p95_ms,
            timings[REFERENCE].ms,
            self._watch.read(),
            loaded - start,
            timed - loaded,
        )


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
    if setting.device == "cuda" or setting.runtime == "torch":
        return dominant(job.session.executed(job.feeds))  # type: ignore[attr-defined]
    found = executed_precision(
        setting.runtime, model.onnx, setting.threads, setting.precision, job.feeds
    )
    return dominant(found)
