"""Slowdown of a training step and of detection beside a busy process, by how threads wait.

    PYTHONPATH=. python benchmarks/beside.py train --minutes 7 --name train
    PYTHONPATH=. python benchmarks/beside.py detect --minutes 5 --name detect

Entrants are processes that differ in their number of threads and how these wait. In every round
each has a turn alone, beside a plain Python loop, and beside another training with two threads that
wait as by torch's default; the other process is stopped in between. It runs in a session of its
own, as a program started in another terminal does: with Linux's autogroup, CPU time is shared among
sessions, not processes. Training is nano at 320x320 in batches of 8, detection nano at 448x448.
Reported are medians: beside over alone, and over the fastest entrant of the same kind alone. The
last line is one JSON object; with --name it goes to benchmarks/results/beside/.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from result import tell

from deploy.edge.session import runtime_version
from latency_tables.models import write_network
from latency_tables.probe.machine import detect_cpu, physical_cores
from latency_tables.probe.setting import Setting
from supernet.data.shapes import make_shapes
from supernet.heatdetr.architecture import preset

RESULTS = Path(__file__).parent / "results" / "beside"
WORKER = Path(__file__).parent / "beside_worker.py"
DETECTION_SIZE = (448, 448)
LOOP = (
    sys.executable,
    "-c",
    "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n for _ in range(10**6): pass",
)
"""The plain Python loop; it ends when the benchmark does, even if that is killed."""
BRIEF = {"GOMP_SPINCOUNT": "10000"}
ONE = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class Entrant:
    """One configuration of threads."""

    name: str
    kind: str
    """train, or a runtime; entrants of a kind are compared."""
    env: dict[str, str] = field(default_factory=dict)
    threads: int = 2
    options: dict[str, Any] = field(default_factory=dict)
    planned: bool = False


ENTRANTS = {
    "train": (
        Entrant("torch's default, 2 threads", "train"),
        Entrant("spin count 10000, 2 threads", "train", BRIEF),
        Entrant("spin count 10000, 1 thread", "train", BRIEF | ONE),
        Entrant("spin count 10000, planned", "train", BRIEF, planned=True),
    ),
    "detect": (
        Entrant("ORT 1", "onnxruntime", threads=1),
        Entrant("ORT 2, spinning", "onnxruntime", options={"spinning": True}),
        Entrant("ORT 2, brief", "onnxruntime"),
        Entrant("ORT 2, not spinning", "onnxruntime", options={"spinning": False}),
        Entrant("ORT 2, brief, pinned", "onnxruntime", options={"pinning": True}),
        Entrant("OpenVINO 1", "openvino", threads=1),
        Entrant("OpenVINO 2", "openvino"),
        Entrant("OpenVINO 2, pinned", "openvino", options={"pinning": True}),
    ),
}


class Racer:
    """A timed process (`beside_worker.py`) and its pipes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Wait until it is ready."""
        self.process = process
        self._read()

    def turn(self, seconds: float, count: int) -> list[float]:
        """Run a turn and return the milliseconds of its runs."""
        self.ask(seconds, count)
        return list(self._read())

    def ask(self, seconds: float, count: int) -> None:
        """Start a turn without waiting for its end."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seconds} {count}\n")
        self.process.stdin.flush()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@contextmanager
def started(command: Sequence[str], env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run a process in a session of its own, and end it."""
    fixed = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={key: value for key, value in os.environ.items() if key not in fixed} | env,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def command_of(entrant: Entrant, folder: Path) -> list[str]:
    """Return the command line of an entrant, after writing the model it needs."""
    start = [sys.executable, str(WORKER)]
    if entrant.kind == "train":
        return [*start, "train", str(folder), "planned" if entrant.planned else "fixed"]
    path = folder / f"{entrant.kind}.onnx"
    if not path.exists():
        setting = Setting(runtime=entrant.kind, precision="f32", threads=1)
        model = write_network(preset("nano", input_size=DETECTION_SIZE), setting)
        path.write_bytes(model.onnx)
    options = json.dumps(entrant.options)
    return [*start, "detect", str(path), entrant.kind, str(entrant.threads), options]


def race(entrants: Sequence[Entrant], minutes: float, turn_s: float) -> dict[str, Any]:
    """Return the samples in milliseconds by entrant and condition."""
    stop = time.monotonic() + 60 * minutes
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_shapes(folder, train=32, val=1)
        racers = [
            Racer(stack.enter_context(started(command_of(entrant, folder), entrant.env)))
            for entrant in entrants
        ]
        loop = stack.enter_context(started(LOOP, {}))
        training = [sys.executable, str(WORKER), "train", str(folder), "fixed"]
        other = stack.enter_context(started(training, {}))
        Racer(other).ask(1e9, 1)
        beside = {"alone": None, "loop": loop, "training": other}
        samples: dict[str, Any] = {e.name: {name: [] for name in beside} for e in entrants}
        for process in (loop, other):
            process.send_signal(signal.SIGSTOP)
        number = 0
        while number < 3 or time.monotonic() < stop:
            order = range(len(racers)) if number % 2 == 0 else reversed(range(len(racers)))
            number += 1
            places = list(order)
            for condition, process in beside.items():
                if process is not None:
                    process.send_signal(signal.SIGCONT)
                    time.sleep(0.2)
                for index in places:
                    own = samples[entrants[index].name][condition]
                    own += racers[index].turn(turn_s, 1)
                if process is not None:
                    process.send_signal(signal.SIGSTOP)
    return samples


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=tuple(ENTRANTS))
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--turn-seconds", type=float, default=1.0)
    parser.add_argument("--without", default="", help="start of the names of entrants left out")
    parser.add_argument("--name")
    options = parser.parse_args()
    left_out = options.without
    entrants = [
        entrant
        for entrant in ENTRANTS[options.what]
        if not left_out or not entrant.name.startswith(left_out)
    ]
    samples = race(entrants, options.minutes, options.turn_seconds)
    ms = {
        name: {condition: statistics.median(times) for condition, times in by.items()}
        for name, by in samples.items()
    }
    rows = {}
    for entrant in entrants:
        own = ms[entrant.name]
        best = min(ms[other.name]["alone"] for other in entrants if other.kind == entrant.kind)
        rows[entrant.name] = row = {
            **{f"{condition}_ms": round(value, 2) for condition, value in own.items()},
            "alone_over_fastest": round(own["alone"] / best, 3),
            "loop_over_alone": round(own["loop"] / own["alone"], 2),
            "loop_over_fastest": round(own["loop"] / best, 2),
            "training_over_alone": round(own["training"] / own["alone"], 2),
            "training_over_fastest": round(own["training"] / best, 2),
            "runs": [len(times) for times in samples[entrant.name].values()],
        }
        print(f"{entrant.name:30s} " + "  ".join(f"{key} {value}" for key, value in row.items()))
    result = {
        "what": options.what,
        "entrants": rows,
        "cpu": detect_cpu().model,
        "cores": physical_cores(),
        "kernel": platform.release(),
        "torch": torch.__version__,
        "onnxruntime": runtime_version("onnxruntime"),
        "openvino": runtime_version("openvino"),
    }
    tell(result, RESULTS / f"{options.name}.json" if options.name else None)


if __name__ == "__main__":
    main()
