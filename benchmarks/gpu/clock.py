"""Times calls on a GPU by CUDA events, or on a CPU by the wall clock."""

import time
from collections.abc import Callable, Mapping

import torch

ROUNDS = 12
UNTIMED = 2
TIMED = 5
"""Calls of an entrant in each round: the untimed ones bring its weights into the caches."""


def timed_ms(work: Callable[[], object], device: torch.device) -> float:
    """Return the milliseconds of one call."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) * 1e3
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start_event.record()
    work()
    end_event.record()
    end_event.synchronize()
    return float(start_event.elapsed_time(end_event))


def race_ms(
    entrants: Mapping[str, Callable[[], object]], device: torch.device, rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Time entrants in turns, so that a changing clock changes all of them."""
    times: dict[str, list[float]] = {name: [] for name in entrants}
    for _ in range(rounds):
        for name, work in entrants.items():
            for _ in range(UNTIMED):
                work()
            times[name] += [timed_ms(work, device) for _ in range(TIMED)]
    return times
