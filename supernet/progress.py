"""A progress bar with ETA on stderr; plain lines now and then where stderr is no terminal."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

LINE_EVERY_S = 20.0


class Progress:
    """Counts steps towards a total: `with Progress("train", 100) as bar: bar.advance()`."""

    def __init__(self, label: str, total: int, *, done: int = 0) -> None:
        """Prepare the bar; `done` steps were counted in an earlier run."""
        self._label, self._total, self._first = label, total, done
        self._done = done
        self._start = self._last_line = time.monotonic()
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(label, total=total, completed=done, note="")
        self._live = sys.stderr.isatty()

    def __enter__(self) -> Self:
        """Show the bar."""
        if self._live:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the bar where it is."""
        if self._live:
            self._bar.stop()

    @property
    def total(self) -> int:
        """Steps in all."""
        return self._total

    @total.setter
    def total(self, total: int) -> None:
        self._total = total
        self._bar.update(self._task, total=total)

    def advance(self, note: str = "", steps: int = 1) -> None:
        """Count steps and show a note beside the bar."""
        self._done += steps
        if self._live:
            self._bar.update(self._task, completed=self._done, note=note)
            return
        now = time.monotonic()
        if now - self._last_line >= LINE_EVERY_S or self._done >= self._total:
            self._last_line = now
            rate = (now - self._start) / max(1, self._done - self._first)
            eta = rate * (self._total - self._done)
            print(
                f"{self._label}: {self._done}/{self._total}, ETA {eta:.0f} s  {note}".rstrip(),
                file=sys.stderr,
                flush=True,
            )
