"""What the stages of `gpu_day.py` share: options, the time that is left, a result on disk at once.

A stage is a script of its own: `python benchmarks/gpu/NAME.py --out FOLDER`. A second run goes on
with the result of the first, where that is of the same device and torch. With --rehearse it runs on
the CPU with tiny sizes, and its result says so.
"""

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import device
import torch

from latency_tables.cuda_graph import CpuGraph, CudaGraph, Recorder
from supernet.atomic import write_text

Item = TypeVar("Item")

SAME = ("rehearsed", "device", "torch", "cuda")
"""Facts of a result that another run may add to."""
OF_A_RUN = ("failures", "left_out", "state", "why", "limit_s")
"""Facts of one run, which the next one does not keep."""
ALONE_S = 60.0
"""Time of a stage that is run by itself."""


class Stage:
    """A running stage."""

    def __init__(self, name: str) -> None:
        """Read the command line, and start the clock and the result file."""
        parser = argparse.ArgumentParser(prog=f"{name}.py")
        parser.add_argument("--out", type=Path, required=True, help="folder of the results")
        parser.add_argument("--until", type=float, help="its end, as time.monotonic() counts")
        parser.add_argument("--rehearse", action="store_true", help="on the CPU, tiny sizes")
        parser.add_argument("--data", type=Path, help="detection set to train on")
        options = parser.parse_args()
        self.name, self.rehearse, self.data = name, options.rehearse, options.data
        self.out = options.out / name
        """Folder of the stage's own files."""
        self.out.mkdir(parents=True, exist_ok=True)
        self._path = options.out / f"{name}.json"
        self._started = time.monotonic()
        self._end = options.until or self._started + ALONE_S
        where = {
            **device.facts(rehearsed=self.rehearse),
            "cuda": torch.version.cuda,
            "date": time.strftime("%Y-%m-%d"),
        }
        before = self._before()
        if any(before.get(key) != where[key] for key in SAME):
            before = {}
        kept = {key: value for key, value in before.items() if key not in OF_A_RUN}
        self.result: dict[str, Any] = {**kept, "stage": name, **where}
        self.leave()

    def _before(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
            return found
        except (OSError, ValueError):
            return {}

    @property
    def device(self) -> torch.device:
        """The GPU, or in a rehearsal the CPU."""
        return torch.device("cpu" if self.rehearse else "cuda")

    @property
    def record(self) -> Recorder:
        """What makes CUDA graphs, or in a rehearsal their stand-in."""
        return CpuGraph if self.rehearse else CudaGraph

    @property
    def left_s(self) -> float:
        """Seconds that are left of the stage's time."""
        return self._end - time.monotonic()

    def leave(self, **facts: Any) -> None:
        """Add facts to the result and write it at once."""
        self.result.update(facts)
        self.result["seconds"] = round(time.monotonic() - self._started, 1)
        write_text(self._path, json.dumps(self.result, indent=1, default=str) + "\n")

    def in_time(self, items: Iterable[Item], each_s: float) -> Iterator[Item]:
        """Yield items while there is time for one more; name those left out in the result."""
        todo = list(items)
        while todo:
            if self.left_s < each_s:
                self.leave(left_out=[*self.result.get("left_out", []), *map(str, todo)])
                return
            yield todo.pop(0)

    def failed(self, what: object, error: BaseException) -> None:
        """Keep what failed, and why, in the result; the stage goes on."""
        lines = str(error).strip().splitlines() or [""]
        text = f"{type(error).__name__}: {lines[0][:300]}"
        self.leave(failures={**self.result.get("failures", {}), str(what): text})


def median_ms(times_ms: Iterable[float]) -> float:
    """Return the median, rounded."""
    ordered = sorted(times_ms)
    return round(ordered[len(ordered) // 2], 4)
