"""Times several models against each other, interleaved, so that drift hits all of them alike.

Each visit to a model begins with an untimed run: the models visited in between have pushed its
weights out of the caches, where a deployed model, run frame after frame, keeps them.
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy.runtimes import Session

WARMUPS = 2
ROUNDS = 6
RUNS_A_VISIT = 2
"""Timed runs of a model in each round, so that there are 12 samples by default."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one run of a model."""

    min_ms: float
    median_ms: float
    spread: float
    """Interquartile range as a share of the median."""
    n: int


@dataclass(frozen=True, slots=True)
class Job:
    """A loaded model and what to feed it."""

    session: Session
    feeds: Mapping[str, Any]


def time_jobs(
    jobs: Mapping[Any, Job],
    *,
    rounds: int = ROUNDS,
    warmups: int = WARMUPS,
) -> dict[Any, Timing]:
    """Visit every job once a round, round-robin."""
    samples: dict[Any, list[float]] = {key: [] for key in jobs}
    for _ in range(warmups):
        for job in jobs.values():
            job.session.run(job.feeds)
    for _ in range(rounds):
        for key, job in jobs.items():
            job.session.run(job.feeds)
            for _ in range(RUNS_A_VISIT):
                start = time.perf_counter()
                job.session.run(job.feeds)
                samples[key].append((time.perf_counter() - start) * 1e3)
    return {key: summarise(values) for key, values in samples.items()}


def summarise(samples_ms: list[float]) -> Timing:
    """Return minimum, median and spread of samples in milliseconds."""
    median = statistics.median(samples_ms)
    if len(samples_ms) > 1:
        low, _, high = statistics.quantiles(samples_ms, n=4)
    else:
        low = high = median
    return Timing(min(samples_ms), median, (high - low) / median, len(samples_ms))
