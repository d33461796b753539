"""Loads a batch of models in a runtime and times them interleaved with the reference models.

Needs numpy and the runtime only: the probe carries this file's text.
"""

import time
from collections.abc import Mapping, Sequence

import numpy as np

from deploy.edge.executed import dominant, executed_precision
from deploy.edge.runtimes import open_session
from deploy.edge.session import Feeds
from supernet.errors import UserError

from .machine import Watch
from .measure import MAX_ROUNDS, ROUNDS, RUNS_A_VISIT, Job, Round, time_jobs
from .setting import REFERENCE_PREFIX, Model, Setting, Shapes, key_of
from .timings import BatchResult, NetworkResult

NETWORK_ROUNDS = 12
"""Rounds of a whole network: more than of a batch, as there are few models."""
NETWORK_MIN_ROUNDS = 6
NETWORK_S = 2.0
"""Intended seconds of a network's own runs: on slow machines it has fewer rounds."""


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
        """Close the references' sessions."""
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
        """Time a whole network interleaved with the references."""
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
        """Time loaded models and close them."""
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


def load(model: Model, setting: Setting) -> Job:
    """Open a session on a model and draw its inputs."""
    if model.opener is not None:
        return Job(model.opener(setting), feeds_of(model.inputs))
    if setting.runtime == "torch":
        raise UserError("torch profiles only where HEAT is: heat profile --runtime torch there")
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


def feeds_of(inputs: Shapes) -> Feeds:
    """Draw random inputs, the same on each call."""
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
