"""Measures a deployed model: frame rate from uint8 image to boxes, batch 1, and peak memory."""

import math
import re
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .session import Feeds, Session

BURSTS = 5
BURST_SECONDS = 0.6
MIN_RUNS = 8


@dataclass(frozen=True, slots=True)
class Speed:
    """Latency of a deployed model."""

    ms: float
    """Sustained: kept for 90 % of the time over the machine states in its latency table; without a
    table, the lowest burst median."""
    p50_ms: float
    """Median over all runs, uncorrected."""
    p95_ms: float
    best_ms: float = math.nan
    """Reached in 10 % of the time."""

    @property
    def fps(self) -> float:
        """Frames per second at batch 1."""
        return 1000.0 / self.ms


def measure_speed(session: Session, feeds: Feeds, *, burst_seconds: float = BURST_SECONDS) -> Speed:
    """Time a session in bursts; the lowest burst median is the latency."""
    bursts: list[list[float]] = []
    for _ in range(2):
        session.run(feeds)
    for _ in range(BURSTS):
        samples: list[float] = []
        stop = time.perf_counter() + burst_seconds
        while len(samples) < MIN_RUNS or time.perf_counter() < stop:
            samples.append(session.timed(feeds))
        bursts.append(samples)
    every = [sample for burst in bursts for sample in burst]
    return Speed(
        min(statistics.median(burst) for burst in bursts),
        statistics.median(every),
        float(np.percentile(every, 95)),
    )


def own_peak_mb() -> float:
    """Return the peak resident memory of this process in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"), re.M)
        if found:
            return int(found[1]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)
