"""Times models side by side: a process for each, in turns, so that all see the same machine state.

    python -m deploy.side_by_side FILE RUNTIME PRECISION THREADS MODE HEIGHTxWIDTH|- WAITING

is one such process, with the mode alone, crowd or look, and how its threads wait as JSON ({} by
default): it loads the model, reports that, and executes commands from stdin. Needs numpy and the
runtime only.
"""

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, TypedDict

import numpy as np

from supernet.errors import HeatError, UserError

from .edge.bench import own_peak_mb
from .edge.card import Waiting
from .edge.executed import executed_precision
from .edge.runtimes import open_crowd, open_session
from .edge.session import Feeds, Session
from .feeds import described, inputs_of, refuse_open_ranks
from .own_process import module_command

ROUNDS = 15
TURN_SECONDS = 0.4
"""Time that each model has in each round."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entrant:
    """A model file and how it is executed."""

    name: str
    model: Path
    runtime: str
    precision: str = "f32"
    threads: int = 1
    waiting: Waiting = field(default_factory=Waiting)
    input_hw: tuple[int, int] | None = None
    """Height and width of images, where the model's are dynamic."""


@dataclass(frozen=True, slots=True)
class Lap:
    """The times of one model, beside the others."""

    name: str
    p50_ms: float
    p95_ms: float
    p99_ms: float
    rounds_ms: tuple[float, ...]
    """Median of each round; ratios of two models are those of the same round."""
    runs: int
    start_ms: float
    """From opening the file to the first result."""
    peak_mb: float
    """Peak resident memory of its process, MiB."""
    inputs: str = ""
    """Name, type and shape of its inputs."""

    @property
    def fps(self) -> float:
        """Frames per second at the median."""
        return 1000.0 / self.p50_ms


class Answer(TypedDict, total=False):
    """A line that a model's process prints."""

    start_ms: float
    """With `inputs`, the first line: the model is loaded."""
    inputs: str
    executed: dict[str, int]
    """In mode look, which ends after this line."""
    ms: list[float]
    """After `run`: of each execution."""
    fps: float
    """After `run` in mode crowd."""
    peak_mb: float
    """After `end`."""
    error: str
    """In place of all others: why the model cannot be run."""


def ratio(one: Lap, other: Lap) -> float:
    """Return how many times longer `one` takes than `other`: the median over the rounds."""
    return statistics.median(a / b for a, b in zip(one.rounds_ms, other.rounds_ms, strict=True))


def race(
    entrants: Sequence[Entrant], *, rounds: int = ROUNDS, turn_seconds: float = TURN_SECONDS
) -> list[Lap]:
    """Time models in turns, each in a process of its own, in the order given.

    Raises `UserError` with the runtime's message where a model cannot be loaded or run.
    """
    with ExitStack() as stack:
        racers = [stack.enter_context(_racer(entrant)) for entrant in entrants]
        samples: list[list[list[float]]] = [[] for _ in entrants]
        for number in range(rounds):
            order = range(len(racers)) if number % 2 == 0 else reversed(range(len(racers)))
            for index in order:
                samples[index].append(racers[index].ask("run", turn_seconds)["ms"])
        return [
            _lap(entrant, racer, racer.ask("end"), turns)
            for entrant, racer, turns in zip(entrants, racers, samples, strict=True)
        ]


def _lap(entrant: Entrant, racer: "_Racer", last: Answer, turns: list[list[float]]) -> Lap:
    every = np.array([ms for turn in turns for ms in turn])
    p50, p95, p99 = (float(value) for value in np.percentile(every, (50, 95, 99)))
    medians = tuple(statistics.median(turn) for turn in turns)
    return Lap(
        name=entrant.name,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        rounds_ms=medians,
        runs=len(every),
        start_ms=racer.start_ms,
        peak_mb=last["peak_mb"],
        inputs=racer.inputs,
    )


class _Racer:
    """The other end of a process that runs one model."""

    def __init__(self, entrant: Entrant, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._name, self._process = entrant.name, process
        self._to: IO[str] = process.stdin
        self._from: IO[str] = process.stdout
        first = self._answer()
        self.start_ms: float = first["start_ms"]
        self.inputs: str = first["inputs"]
        self.executed: dict[str, int] = first.get("executed", {})

    def ask(self, *words: object) -> Answer:
        self._to.write(" ".join(map(str, words)) + "\n")
        self._to.flush()
        return self._answer()

    def _answer(self) -> Answer:
        line = self._from.readline()
        try:
            answer: Answer = json.loads(line)
        except ValueError:
            self._process.wait()
            raise HeatError(f"{self._name}: its process died ({line.strip()[-200:]})") from None
        if "error" in answer:
            raise UserError(f"{self._name}: {answer['error']}")
        return answer


@contextmanager
def _racer(entrant: Entrant, mode: str = "alone") -> Iterator[_Racer]:
    command = [
        *module_command("deploy.side_by_side"),
        str(entrant.model), entrant.runtime, entrant.precision, str(entrant.threads), mode,
        "x".join(map(str, entrant.input_hw)) if entrant.input_hw else "-",
        json.dumps(entrant.waiting),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield _Racer(entrant, process)
    finally:
        process.kill()
        process.communicate()


def run_for(session: Session, feeds: Feeds, seconds: float) -> list[float]:
    """Run at least once, and until the time is up; return the milliseconds of each run."""
    samples: list[float] = []
    stop = time.perf_counter() + seconds
    while not samples or time.perf_counter() < stop:
        samples.append(session.timed(feeds))
    return samples


def throughput(entrant: Entrant, cores: int, *, seconds: float = 5.0) -> float:
    """Return frames per second where as many requests as `cores` are in flight at once.

    The model has the machine to itself, in a process of its own.
    """
    crowd = replace(entrant, threads=cores)
    with _racer(crowd, "crowd") as racer:
        return float(racer.ask("run", seconds)["fps"])


def executed(entrant: Entrant) -> dict[str, int]:
    """Return how many heavy nodes of a model are executed in each precision.

    It is read back in a process of its own, which is not timed. Raises `UserError` where an input
    has no known rank.
    """
    with _racer(entrant, "look") as racer:
        return racer.executed


def crowd_fps(session: Any, feeds: Feeds, requests: int, seconds: float) -> float:
    """Run a session from several threads at once; return frames per second."""
    done = [0] * requests
    start = time.perf_counter()
    stop = start + seconds

    def work(index: int) -> None:
        run = session.runner()
        while time.perf_counter() < stop:
            run(feeds)
            done[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(requests)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - start)


def main(arguments: Sequence[str]) -> int:
    """Load a model and execute commands from stdin: `run SECONDS`, `end`."""
    model, runtime, precision, threads, mode, size, waiting = arguments
    try:
        start = time.perf_counter()
        crowd = mode == "crowd"
        chosen = (runtime, Path(model), int(threads), precision)
        opened = open_crowd(*chosen) if crowd else open_session(*chosen, **json.loads(waiting))
        with opened as session:
            height, _, width = size.partition("x")
            feeds = inputs_of(session, (int(height), int(width)) if width else None)
            session.run(feeds)
            if mode == "look":
                refuse_open_ranks(session, Path(model))
                found = executed_precision(runtime, Path(model), int(threads), precision, feeds)
                _send({"start_ms": 0.0, "inputs": described(feeds), "executed": found})
                return 0
            _send({"start_ms": (time.perf_counter() - start) * 1e3, "inputs": described(feeds)})
            run_for(session, feeds, 0.0)
            for line in sys.stdin:
                verb, *rest = line.split()
                if verb == "end":
                    _send({"peak_mb": own_peak_mb()})
                    break
                if crowd:
                    _send({"fps": crowd_fps(session, feeds, int(threads), float(rest[0]))})
                    continue
                session.run(feeds)  # untimed: the caches hold the other models' data
                _send({"ms": run_for(session, feeds, float(rest[0]))})
    except HeatError as error:
        _send({"error": str(error)})
        return error.exit_code
    except Exception as error:  # what a runtime raises has no common base
        _send({"error": " ".join(f"it cannot be run: {error}".split())[:300]})
        return 1
    return 0


def _send(answer: Answer) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
