"""Times several models against each other, interleaved, so that drift hits all of them alike.

Each visit to a model begins with an untimed run: the models visited in between have pushed its
weights out of the caches, where a deployed model, run frame after frame, keeps them. Rounds are
repeated until the fast end of every model's samples is known well enough, or the patience ends.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy.runtimes import Session

WARMUPS = 2
ROUNDS = 6
MAX_ROUNDS = 24
RUNS_A_VISIT = 2
"""Timed runs of a model in each round, so that there are at least 12 samples."""
TOLERANCE = 0.03
"""Width of the confidence interval, as a share of the time, at which a model is done."""
QUANTILE, CONFIDENCE = 0.1, 0.95
"""The interval is that of the tenth percentile: what the undisturbed machine does."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one run of a model."""

    min_ms: float
    median_ms: float
    spread: float
    """Interquartile range as a share of the median."""
    n: int
    interval: float
    """Width of the 95 % confidence interval of the tenth percentile, as a share of the minimum."""

    @property
    def interval_ms(self) -> float:
        """Width of the interval in milliseconds."""
        return self.interval * self.min_ms

    @property
    def stable(self) -> bool:
        """Whether the interval became narrow enough."""
        return self.interval <= TOLERANCE


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
    max_rounds: int | None = None,
) -> dict[Any, Timing]:
    """Visit every job once a round, round-robin; after `rounds` only those not yet stable."""
    samples: dict[Any, list[float]] = {key: [] for key in jobs}
    for _ in range(warmups):
        for job in jobs.values():
            job.session.run(job.feeds)
    for done in range(max_rounds or max(rounds, MAX_ROUNDS)):
        unstable = list(jobs)
        if done >= rounds:
            unstable = [key for key in jobs if not summarise(samples[key]).stable]
        if not unstable:
            break
        for key in unstable:
            job = jobs[key]
            job.session.run(job.feeds)
            samples[key].extend(job.session.timed(job.feeds) for _ in range(RUNS_A_VISIT))
    return {key: summarise(values) for key, values in samples.items()}


def summarise(samples_ms: list[float]) -> Timing:
    """Return minimum, median, spread and confidence interval of samples in milliseconds."""
    ordered = sorted(samples_ms)
    median = statistics.median(ordered)
    low = high = median
    if len(ordered) > 1:
        low, _, high = statistics.quantiles(ordered, n=4)
    interval = ordered[upper_rank(len(ordered)) - 1] / ordered[0] - 1
    return Timing(ordered[0], median, (high - low) / median, len(ordered), interval)


def upper_rank(n: int) -> int:
    """Return the rank k of the sample that bounds the tenth percentile from above.

    The k-th smallest of n independent samples lies above a quantile q with probability
    P(Binomial(n, q) < k): the distribution-free confidence bound of order statistics.
    """
    total = 0.0
    for k in range(n):
        total += math.comb(n, k) * QUANTILE**k * (1 - QUANTILE) ** (n - k)
        if total >= CONFIDENCE:
            return k + 1
    return n
