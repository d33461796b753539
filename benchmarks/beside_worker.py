"""A process that `beside.py` times: prints `{}` when ready, then runs turns as stdin requests.

    python benchmarks/beside_worker.py train FOLDER fixed|planned
    python benchmarks/beside_worker.py detect MODEL RUNTIME THREADS OPTIONS

A line `SECONDS COUNT` is a turn of at least that duration and number of runs; it is answered by a
list of milliseconds.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

SIZE = (320, 320)
BATCH = 8
PLANNING_S = 4.0
"""Seconds of training before a turn of a planned run, in which it detects other load."""


def turns() -> Iterator[tuple[float, int]]:
    """Yield the seconds and count of every line of stdin."""
    for line in sys.stdin:
        seconds, count = line.split()
        yield float(seconds), int(count)


def answer(samples: Any) -> None:
    """Print one line of JSON."""
    print(json.dumps(samples), flush=True)


def train(folder: Path, threads: str) -> None:
    """Train nano with HEAT's own loop; a step is the time between two requests for a batch."""
    from supernet.data.coco import load_split
    from supernet.heatdetr.architecture import preset
    from supernet.heatdetr.detector import Detector
    from supernet.train import threads as planning
    from supernet.train.feed import feed
    from supernet.train.loop import run_task
    from supernet.train.recipes import recipe
    from supernet.train.running import Running
    from supernet.train.task import Batch, DetectionTask

    parent = os.getppid()
    adapts = threads == "planned"
    planning.PLAN_EVERY_S = 0.5 if adapts else float("inf")
    planning.FIRST_LOOK_S = 0.0
    if not adapts:
        planning.IGNORED_LOAD = float("inf")

    class Paced(DetectionTask):
        """Yields the same few batches while a turn lasts."""

        def feed(self, config: Any, epochs: range, *_: Any) -> Iterator[Batch]:
            """Time the loop from one batch to the next; the first steps of a turn are not timed."""
            batches = list(islice(feed(self.data, SIZE, config, epochs), 4))
            yield from batches[:2]
            answer({})
            for seconds, count in turns():
                planned = time.perf_counter() + (PLANNING_S if adapts else 0.0)
                yield batches[0]
                while time.perf_counter() < planned:
                    yield batches[0]
                samples: list[float] = []
                stop = time.perf_counter() + seconds
                while len(samples) < count or time.perf_counter() < stop:
                    if os.getppid() != parent:
                        raise SystemExit  # the benchmark was killed
                    start = time.perf_counter()
                    yield batches[len(samples) % len(batches)]
                    samples.append((time.perf_counter() - start) * 1e3)
                answer(samples)
            raise SystemExit

    data = load_split(folder, "train")
    network = Detector(preset("nano", input_size=SIZE, num_classes=data.num_classes))
    config = replace(recipe("small"), batch_size=BATCH, epochs=1000)
    task = Paced(network, data)
    task.num_images = 10**7  # no epoch ends while it is timed
    run_task(task, config, folder / f"run-{os.getpid()}", Running(restart=True))


def detect(model: str, runtime: str, threads: str, options: str) -> None:
    """Run a model in a runtime, on one image again and again."""
    from deploy.edge.runtimes import open_session
    from deploy.feeds import inputs_of

    session = open_session(runtime, Path(model), int(threads), **json.loads(options))
    feeds = inputs_of(session)
    for _ in range(5):
        session.run(feeds)
    answer({})
    for seconds, count in turns():
        session.run(feeds)
        samples: list[float] = []
        stop = time.perf_counter() + seconds
        while len(samples) < count or time.perf_counter() < stop:
            samples.append(session.timed(feeds))
        answer(samples)


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(Path(sys.argv[2]), sys.argv[3])
    else:
        detect(*sys.argv[2:])
