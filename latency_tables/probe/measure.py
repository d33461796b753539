"""Times several models in turns (interleaved), so that drift affects all of them equally.

A round visits every model once. Each visit begins with an untimed run: the models in between have
evicted its weights from the caches, where a deployed model, run frame after frame, keeps them.
Rounds are repeated until the confidence interval of every model's median is narrow enough, or
their maximum is reached.
"""

import math
import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from deploy.edge.session import Feeds, Session

from .records import TimingRecord

WARMUPS = 2
ROUNDS = 6
MAX_ROUNDS = 24
RUNS_A_VISIT = 2
"""Timed runs of a model in each round, so that there are at least 12 samples."""
TOLERANCE = 0.03
"""Width of the confidence interval, as a share of the median, at which a model is stable."""
CONFIDENCE = 0.95
INTERVAL_SDS = 3.92
"""Width of a 95 % interval in standard deviations of a normal distribution."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one run of a model."""

    ms: float
    """Median of the samples, each scaled to the machine's median speed over the rounds."""
    min_ms: float
    """Lowest sample, not scaled."""
    p95_ms: float
    """95th percentile of the scaled samples."""
    spread: float
    """Interquartile range as a share of the median."""
    n: int
    interval: float
    """Width of the 95 % confidence interval of the median, as a share of it."""

    @property
    def sd_ms(self) -> float:
        """Standard deviation of the median in milliseconds, from the interval's width."""
        return self.interval * self.ms / INTERVAL_SDS

    @property
    def stable(self) -> bool:
        """Whether the interval is narrow enough."""
        return self.interval <= TOLERANCE

    def to_json(self) -> TimingRecord:
        """Return the fields as JSON values."""
        return {
            "ms": self.ms,
            "min_ms": self.min_ms,
            "p95_ms": self.p95_ms,
            "spread": self.spread,
            "n": self.n,
            "interval": self.interval,
        }


@dataclass(frozen=True, slots=True)
class Job:
    """A loaded model and its inputs."""

    session: Session
    feeds: Feeds


@dataclass(frozen=True, slots=True)
class Round:
    """The reference models in one round, which visits every job once."""

    seconds: float
    """Duration of the round."""
    reference_ms: Mapping[str, float]
    """Mean milliseconds of each reference in it, not scaled."""


def time_jobs(
    jobs: Mapping[str, Job],
    *,
    references: Collection[str] = (),
    rounds: int = ROUNDS,
    warmups: int = WARMUPS,
    max_rounds: int = MAX_ROUNDS,
    watched: list[Round] | None = None,
) -> dict[str, Timing]:
    """Visit every job once a round, round-robin; after `rounds` only those not yet stable.

    A machine's clock varies by some percent from second to second. This shows as a slowdown common
    to all jobs of a round, by which their samples are divided. The `references` among the jobs are
    visited in every round, but need not become stable; `watched` receives their times, not scaled.
    """
    visits: dict[str, dict[int, list[float]]] = {key: {} for key in jobs}
    for _ in range(warmups):
        for job in jobs.values():
            job.session.run(job.feeds)
    for number in range(max(rounds, max_rounds)):
        todo = list(jobs)
        if number >= rounds:
            timings = at_one_speed(visits)
            unstable = [key for key in jobs if key not in references and not timings[key].stable]
            if not unstable:
                break
            todo = [*unstable, *(key for key in jobs if key in references)]
        start = time.perf_counter()
        for key in todo:
            job = jobs[key]
            job.session.run(job.feeds)
            visits[key][number] = [job.session.timed(job.feeds) for _ in range(RUNS_A_VISIT)]
        if watched is not None:
            seen = {key: statistics.fmean(visits[key][number]) for key in jobs if key in references}
            watched.append(Round(time.perf_counter() - start, seen))
    return at_one_speed(visits)


def at_one_speed(visits_ms: Mapping[str, Mapping[int, Sequence[float]]]) -> dict[str, Timing]:
    """Summarise each job's samples by round, divided by the round's common slowdown."""
    typical = {
        key: statistics.median(chain.from_iterable(rounds.values()))
        for key, rounds in visits_ms.items()
    }
    slowness: dict[int, list[float]] = {}
    for key, rounds in visits_ms.items():
        for number, samples in rounds.items():
            slowness.setdefault(number, []).append(statistics.fmean(samples) / typical[key])
    common = {
        number: statistics.median(ratios) if len(visits_ms) > 1 else 1.0
        for number, ratios in slowness.items()
    }
    usual = statistics.median(common.values())
    return {
        key: summarise(
            [ms * usual / common[number] for number, samples in rounds.items() for ms in samples],
            min(chain.from_iterable(rounds.values())),
        )
        for key, rounds in visits_ms.items()
    }


def summarise(samples_ms: Sequence[float], min_ms: float) -> Timing:
    """Return median, spread and confidence interval of samples in milliseconds."""
    ordered = sorted(samples_ms)
    median = statistics.median(ordered)
    low = high = median
    if len(ordered) > 1:
        low, _, high = statistics.quantiles(ordered, n=4)
    outside = outer_rank(len(ordered))
    interval = (ordered[-1 - outside] - ordered[outside]) / median
    p95 = float(np.percentile(ordered, 95))
    return Timing(median, min_ms, p95, (high - low) / median, len(ordered), interval)


def outer_rank(n: int) -> int:
    """Return how many of n samples on each side lie outside the interval of the median.

    The k-th smallest of n independent samples lies above the median with probability
    P(Binomial(n, 1/2) < k): the distribution-free confidence bounds of order statistics.
    """
    total = 0.0
    for k in range(n // 2):
        total += math.comb(n, k) * 0.5**n
        if total > (1 - CONFIDENCE) / 2:
            return max(0, k - 1)
    return 0
