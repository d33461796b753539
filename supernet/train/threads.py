"""The number of threads of torch on a CPU: one fewer for every core that others keep busy.

Two threads wait for each other at every operator, so one busy process on one of two cores costs
them far more than its share of time: a step of nano that takes 0.18 s alone takes 21 s beside a
loop that runs in another session; one thread takes 0.26 s alone and 0.27 s beside it
(`benchmarks/beside.py`).

The number changes the order of sums, so a run records it whenever it changes, and is
resumed with the recorded one.
"""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

PLAN_EVERY_S = 10.0
"""Time over which other processes are watched before the number of threads is planned again."""
FIRST_LOOK_S = 0.3
"""The same at the start."""
CONFIRM_S = 2.0
"""The same to confirm a look that allows fewer: waiting longer for a core costs most of a step."""
LONG_LOOK_S = 20.0
"""A look over so long confirms itself: there is none within a step, and these become slow."""
BUSY_LOOKS = 2
"""Looks in a row that must allow fewer threads before there are fewer."""
QUIET_LOOKS = 3
"""Looks in a row that must allow more threads before there are more."""
IGNORED_LOAD = 0.3
"""Cores kept busy by others that cost no thread."""
FIXED_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables by which a user, or torchrun, fixes the number of threads."""
PROC = Path("/proc")


def threads_beside(cores: int, other_load: float) -> int:
    """Return the threads to use on `cores` while others keep `other_load` of them busy.

    At least half of the cores, so that two trainings share a machine evenly.
    """
    taken = math.ceil(max(0.0, other_load - IGNORED_LOAD))
    return max(cores - taken, cores // 2, 1)


class OtherLoad:
    """Watches how many of the cores this process may use are kept busy by others."""

    def __init__(self) -> None:
        self._last = _counters()

    @property
    def seconds(self) -> float:
        """Time since the last look."""
        return time.monotonic() - self._last[0]

    def look(self) -> float:
        """Return the cores that others kept busy since the last look; 0 where this is unknown."""
        before, self._last = self._last, _counters()
        wall, busy, own = (new - old for new, old in zip(self._last, before, strict=True))
        return max(0.0, busy - own) / max(wall, 1e-9)


class ThreadPlan:
    """The threads of a training run in this process."""

    def __init__(self, cores: int, *, adapts: bool) -> None:
        """Plan for at most `cores`; where it does not adapt, the number stays as it is."""
        self.cores, self.adapts = cores, adapts
        self.now = cores
        self.other_load = 0.0
        self._watch = OtherLoad()
        self._busy = self._quiet = 0
        """Looks in a row that allowed fewer threads, and more."""

    def start(self, recorded: int | None) -> None:
        """Use the number that a resumed run recorded, or choose one."""
        if not self.adapts:
            return
        if recorded is None:
            time.sleep(FIRST_LOOK_S)
            self.other_load = self._watch.look()
            recorded = threads_beside(self.cores, self.other_load)
        self._use(min(recorded, self.cores))

    def changed(self) -> bool:
        """Plan again if it is time to; return whether the number of threads has changed.

        A single look changes nothing, so that short loads do not either.
        """
        wait_s = CONFIRM_S if self._busy else PLAN_EVERY_S
        if not self.adapts or self._watch.seconds < wait_s:
            return False
        looks = BUSY_LOOKS if self._watch.seconds >= LONG_LOOK_S else 1
        self.other_load = self._watch.look()
        wanted = threads_beside(self.cores, self.other_load)
        self._busy = self._busy + looks if wanted < self.now else 0
        self._quiet = self._quiet + 1 if wanted > self.now else 0
        if self._busy < BUSY_LOOKS and self._quiet < QUIET_LOOKS:
            return False
        self._use(wanted)
        return True

    def _use(self, threads: int) -> None:
        self._busy = self._quiet = 0
        self.now = threads
        torch.set_num_threads(threads)

    def __str__(self) -> str:
        """Return the text of a log line."""
        return f"{self.now} of {self.cores} (others keep {self.other_load:.1f} cores busy)"


def is_fixed() -> bool:
    """Return whether the environment fixes the number of threads."""
    return any(os.environ.get(name) for name in FIXED_BY)


@contextmanager
def planned(most: int | None = None, *, adapts: bool = True) -> Iterator[ThreadPlan]:
    """Let a block of work plan torch's threads, at most `most`; afterwards they are as before.

    A number that was fixed, by the environment or `torch.set_num_threads`, is never exceeded.
    """
    before = torch.get_num_threads()
    plan = ThreadPlan(min(before, most or before), adapts=adapts and not is_fixed())
    try:
        yield plan
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


@contextmanager
def sparing(most: int | None = None) -> Iterator[ThreadPlan]:
    """Let a block of work use only the threads, at most `most`, that others leave at its start."""
    with planned(most) as plan:
        plan.start(None)
        yield plan


def threads_now(most: int) -> int:
    """Return how many threads, at most `most`, to give to a process that starts now."""
    with sparing(most) as plan:
        return plan.now


def _counters() -> tuple[float, float, float]:
    """Return wall seconds, and the CPU seconds of all on the allowed cores and of this process.

    Processes that this one started count as its own.
    """
    tick = os.sysconf("SC_CLK_TCK")
    busy = 0.0
    with suppress(OSError, AttributeError):
        allowed = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        for line in (PROC / "stat").read_text(encoding="utf-8").splitlines():
            name, *fields = line.split()
            if name in allowed:
                user, nice, system, _, _, irq, softirq = map(int, fields[:7])
                busy += (user + nice + system + irq + softirq) / tick
    return time.monotonic(), busy, _own_ticks() / tick


def _own_ticks() -> int:
    """Return the CPU time of this process and its descendants, the ended ones included."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for folder in PROC.glob("[0-9]*"):
        with suppress(OSError, ValueError):
            text = (folder / "stat").read_text(encoding="utf-8")
            fields = text.rpartition(")")[2].split()  # a name may hold spaces
            parents[int(folder.name)] = int(fields[1])
            ticks[int(folder.name)] = sum(map(int, fields[11:15]))
    me = os.getpid()
    return sum(spent for pid, spent in ticks.items() if _descends(pid, me, parents))


def _descends(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid != ancestor and pid in parents:
        pid = parents[pid]
    return pid == ancestor
