"""Faults made on purpose: commands that are killed, or refused a write, at any file operation.

The operations of Python in a folder are counted by an audit hook: opening a file to write,
renaming, removing, truncating. At one of them the process is killed, or from one on the disk is
full. `fault_stages.py` has the commands. Used by `test_faults.py` and by `benchmarks/faults.py`.
"""

import errno
import math
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from heat.cli import main

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir", "os.link")


def install(within: Path, kill_at: int = 0, full_at: int = 0) -> Callable[[], int]:
    """Count the operations in a folder from now on; return what returns their number.

    At operation `kill_at` the process is killed; from `full_at` on what needs room is refused.
    """
    count, start = 0, str(within.resolve())

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            path, mode, flags = arguments
            changes = bool(flags & WRITING) or (mode is not None and mode[0] not in "rU")
        elif event in CHANGES:
            path, changes = arguments[0], True
        else:
            return
        if not changes or isinstance(path, int) or not os.fsdecode(path).startswith(start):
            return
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if full_at and count >= full_at and event in ("open", "os.mkdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(path))

    sys.addaudithook(hook)
    return lambda: count


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    """Exit code; the negative number of the signal that killed it."""
    errors: str
    operations: int
    """Counted in the folder; 0 where it was killed."""
    seconds: float

    @property
    def line(self) -> str:
        """The last line of stderr."""
        lines = self.errors.strip().splitlines()
        return lines[-1] if lines else ""


class Child:
    """A command in a child of this process, which has imported everything already.

    Moments at which it is killed are then in its work.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        within: Path,
        *,
        kill_at: int = 0,
        full_at: int = 0,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Start it; `before` is called in the child first."""
        self._folder = Path(tempfile.mkdtemp())
        self._start = time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            self._be([str(word) for word in arguments], within, kill_at, full_at, before)

    def wait(self, kill_after_s: float = math.inf) -> Outcome:
        """Return how it ended, killed after so many seconds."""
        killed = False
        while not (done := os.waitpid(self.pid, os.WNOHANG))[0]:
            if not killed and time.monotonic() - self._start > kill_after_s:
                killed = True
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.01)
        errors, count = self._folder / "stderr", self._folder / "count"
        outcome = Outcome(
            os.waitstatus_to_exitcode(done[1]),
            errors.read_text(errors="replace") if errors.exists() else "",
            int(count.read_text()) if count.exists() else 0,
            time.monotonic() - self._start,
        )
        shutil.rmtree(self._folder)
        return outcome

    def _be(
        self,
        arguments: list[str],
        within: Path,
        kill_at: int,
        full_at: int,
        before: Callable[[], None],
    ) -> NoReturn:
        code = 1
        errors = self._folder / "stderr"
        try:
            with errors.open("w", buffering=1) as stream:
                sys.stdout = sys.stderr = stream
                sys.argv = ["heat", *arguments]
                before()
                count = install(within, kill_at, full_at)
                code = main(arguments)
                (self._folder / "count").write_text(str(count()))
        except BaseException:
            with errors.open("a") as stream:
                traceback.print_exc(file=stream)
        finally:
            os._exit(code)


def forked(arguments: Sequence[object], within: Path, **fault: Any) -> Outcome:
    """Run a command to its end; see `Child`."""
    return Child(arguments, within, **fault).wait()
