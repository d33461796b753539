"""A command run in a process of its own, with the memory and descriptors of it and its children.

Read from Linux's /proc; memory of children is their share (PSS), so that shared pages count once.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a process and its children."""

    seconds: float
    """Since the start."""
    rss_mb: float
    children_mb: float
    """Share of all children together (PSS), in MiB."""
    children: int
    descriptors: int


@dataclass(slots=True)
class Run:
    """What a command did and took."""

    code: int = 0
    seconds: float = 0.0
    out: str = ""
    errors: str = ""
    looks: list[Look] = field(default_factory=list)

    @property
    def peak_mb(self) -> float:
        """Most resident memory of the process itself that was seen."""
        return max((look.rss_mb for look in self.looks), default=0.0)

    @property
    def children_mb(self) -> float:
        """Most memory of the children together that was seen, as their share."""
        return max((look.children_mb for look in self.looks), default=0.0)

    @property
    def children(self) -> int:
        """Most children at once."""
        return max((look.children for look in self.looks), default=0)


def watch(
    command: list[str],
    *,
    every_s: float = 0.2,
    until: Callable[[Look], bool] = lambda look: False,
    folder: Path,
    **options: Any,
) -> Run:
    """Run a command and look at it; SIGTERM is sent once `until` returns true.

    What it prints goes to files in `folder`.
    """
    run, start = Run(), time.monotonic()
    out, errors = folder / "stdout.txt", folder / "stderr.txt"
    with out.open("w") as first, errors.open("w") as second:
        process = subprocess.Popen(command, stdout=first, stderr=second, **options)
        asked = False
        try:
            while process.poll() is None:
                seen = look(process.pid, time.monotonic() - start)
                if seen is not None:
                    run.looks.append(seen)
                    if not asked and until(seen):
                        asked = True
                        process.terminate()  # jobs in the background ignore SIGINT
                time.sleep(every_s)
        finally:
            process.kill()
            process.wait()
    run.seconds, run.code = time.monotonic() - start, process.returncode
    run.out, run.errors = out.read_text(), errors.read_text()
    return run


def look(pid: int, seconds: float) -> Look | None:
    """Return what a process has now; None where it is gone."""
    try:
        rss = _status_kb(PROC / str(pid) / "status", "VmRSS:")
        descriptors = len(os.listdir(PROC / str(pid) / "fd"))  # noqa: PTH208
    except (OSError, ValueError):
        return None
    below = list(_children(pid))
    shares = 0
    for child in below:
        with contextlib.suppress(OSError, ValueError):
            shares += _status_kb(PROC / str(child) / "smaps_rollup", "Pss:")
    return Look(seconds, rss / 1024, shares / 1024, len(below), descriptors)


def _children(pid: int) -> Iterator[int]:
    """Yield all processes below one."""
    with contextlib.suppress(OSError):
        for task in (PROC / str(pid) / "task").iterdir():
            for child in (task / "children").read_text().split():
                yield int(child)
                yield from _children(int(child))


def _status_kb(path: Path, key: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise ValueError(f"{path} has no {key}")
