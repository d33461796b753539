"""Times a model with several numbers of threads, to see which serves this machine best."""

import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.edge.runtimes import open_session
from deploy.edge.session import Feeds

CHECK_S = 4.0
"""Seconds for all numbers of threads together."""
TURN_S = 0.1
"""Seconds of one turn with one number of threads."""
WORTH = 0.95
"""Several threads are worth it below this share of one thread's time."""


@dataclass(frozen=True, slots=True)
class ThreadTiming:
    """Milliseconds of one run with one number of threads."""

    ms: float
    """Median."""
    slow_ms: float
    """90th percentile: the slowest tenth of the runs takes at least this long."""


def thread_check(
    model: bytes | Path,
    feeds: Feeds,
    counts: Sequence[int],
    *,
    runtime: str = "onnxruntime",
    precision: str = "f32",
    seconds: float = CHECK_S,
    spinning: bool | None = None,
    pinning: bool = False,
) -> dict[int, ThreadTiming]:
    """Time a model with each number of threads in turns of at least three runs.

    Raises `UserError` where the machine has fewer cores than threads.
    """
    sessions = {
        count: open_session(runtime, model, count, precision, spinning=spinning, pinning=pinning)
        for count in counts
    }
    samples: dict[int, list[float]] = {count: [] for count in counts}
    stop = time.perf_counter() + seconds
    for turn in itertools.count():
        if turn and time.perf_counter() > stop:
            break
        for count, session in sessions.items():
            session.run(feeds)  # untimed: the other sessions have filled the caches
            turn_ends = time.perf_counter() + TURN_S
            taken = 0
            while taken < 3 or time.perf_counter() < turn_ends:
                samples[count].append(session.timed(feeds))
                taken += 1
    for session in sessions.values():
        session.close()
    return {count: _timing(times) for count, times in samples.items()}


def _timing(samples_ms: Sequence[float]) -> ThreadTiming:
    ordered = sorted(samples_ms)
    return ThreadTiming(statistics.median(ordered), ordered[int(0.9 * (len(ordered) - 1))])


def trouble(timings: Mapping[int, ThreadTiming]) -> str:
    """Return why one thread is better than the largest number timed; empty where it is not.

    `timings` must include one thread.
    """
    most, one = timings[max(timings)], timings[1]
    if most.ms > WORTH * one.ms:
        return f"{max(timings)} threads are no faster than one"
    if most.slow_ms > one.slow_ms:
        return f"{max(timings)} threads are less steady than one"
    return ""


def describe(timings: Mapping[int, ThreadTiming]) -> str:
    """Return the times as a sentence."""
    return ", ".join(
        f"{count} thread{'s' if count > 1 else ''}: {timing.ms:.1f} ms, the slow tenth "
        f"{timing.slow_ms:.1f} ms"
        for count, timing in sorted(timings.items())
    )


def best_count(timings: Mapping[int, ThreadTiming]) -> int:
    """Return the number of threads with the lowest 90th percentile."""
    return min(timings, key=lambda count: timings[count].slow_ms)
