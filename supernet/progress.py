"""The live view of long work on stderr: stage, bar, ETA, and what is being decided.

Where stderr is no terminal these are plain lines, now and then.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
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

_names: tuple[str, ...] = ()
_stage = ""
"""The stage that bars are of, where a command has several: `3/8 supernet`."""
_shown: list["Progress"] = []
"""Bars in the terminal, the innermost last: it alone is drawn."""


@contextmanager
def stages(*names: str) -> Iterator[None]:
    """Let work have stages, which `begin` begins; also a decorator."""
    global _names, _stage
    before, _names = (_names, _stage), names
    try:
        yield
    finally:
        _names, _stage = before


def begin(name: str) -> None:
    """Begin a stage: its name is printed, and shown before the bars that follow."""
    global _stage
    _stage = f"{_names.index(name) + 1}/{len(_names)} {name}"
    print(f"== {_stage}", file=sys.stderr, flush=True)


class Progress:
    """Counts steps towards a total: `with Progress("train", 100) as bar: bar.advance()`."""

    def __init__(self, label: str, total: int, *, done: int = 0, even: bool = True) -> None:
        """Prepare the bar; `done` steps were counted in an earlier run.

        Steps that are not `even` take so different times that no ETA is shown.
        """
        self._label, self._total, self._first = label, total, done
        self._done = done
        self._start = self._last_line = time.monotonic()
        self._bar = RichProgress(
            TextColumn(_stage, style="bold", markup=False),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            *((TextColumn("ETA"), TimeRemainingColumn()) if even else ()),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(label, total=total, completed=done, note="")
        self._live = sys.stderr.isatty()

    def __enter__(self) -> Self:
        """Show the bar."""
        if self._live:
            if _shown:
                _shown[-1]._bar.stop()
            _shown.append(self)
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
            _shown.remove(self)
            if _shown:
                _shown[-1]._bar.start()

    @property
    def total(self) -> int:
        """Steps in all."""
        return self._total

    @total.setter
    def total(self, total: int) -> None:
        self._total = total
        self._bar.update(self._task, total=total)

    def reach(self, done: int, note: str = "") -> None:
        """Move the bar to so many steps, never back, and show a note beside it."""
        if self._live:
            self._done = max(self._done, min(done, self._total))
            self._bar.update(self._task, completed=self._done, note=note)

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
