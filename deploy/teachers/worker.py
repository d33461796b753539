"""Runs a teacher in a process of its own: its runtime and memory stay apart from the training.

The process ends with its parent, however that ends: the pipe that it reads from is closed then.
"""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Self

from supernet.errors import HeatError

LONGEST_REASON = 300
"""Characters of an unexpected error that are shown."""


class Worker:
    """An object in another process, whose methods are called by name.

    `make(*arguments)` builds the object there: a function of a module, and arguments that can be
    pickled. A `HeatError` that it or a method raises is raised here; the process then goes on.
    """

    def __init__(self, make: Callable[..., object], *arguments: object) -> None:
        """Start the process and wait until the object is built."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, make, arguments), daemon=True, name="teacher"
        )
        self._process.start()
        theirs.close()
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, method: str, *arguments: object) -> Any:
        """Call a method of the object and return its result."""
        self._send(method, arguments)
        return self._answer()

    def stream(self, method: str, inputs: Iterable[object]) -> Iterator[Any]:
        """Yield the result for each input; the next input is made while the object works."""
        waiting = False
        for item in inputs:
            if waiting:
                yield self._answer()
            self._send(method, (item,))
            waiting = True
        if waiting:
            yield self._answer()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()

    def __enter__(self) -> Self:
        """Return the worker."""
        return self

    def __exit__(self, *raised: object) -> None:
        """End the process."""
        self.close()

    def _send(self, method: str, arguments: tuple[object, ...]) -> None:
        try:
            self._pipe.send((method, arguments))
        except OSError:
            raise self._died() from None

    def _answer(self) -> Any:
        try:
            found = self._pipe.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if isinstance(found, HeatError):
            raise found
        return found

    def _died(self) -> HeatError:
        self._process.join(timeout=5)
        return HeatError(
            f"the teacher's process died (exit code {self._process.exitcode}): out of memory? The "
            "same command goes on (heat train and heat pretrain: with --resume)"
        )


def _serve(pipe: Connection, make: Callable[..., object], arguments: tuple[object, ...]) -> None:
    """Build the object, then answer calls until the parent closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which closes the pipe
    try:
        found = _result(make, arguments)
        if isinstance(found, HeatError):
            pipe.send(found)
            return
        pipe.send(None)
        while True:
            method, inputs = pipe.recv()
            pipe.send(_result(getattr(found, method), inputs))
    except (EOFError, OSError):  # nobody listens
        sys.exit(0)


def _result(call: Callable[..., object], arguments: tuple[object, ...]) -> object:
    """Return what a call returns, or the error that it raises as one line."""
    try:
        return call(*arguments)
    except HeatError as error:
        return error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return HeatError(f"the teacher failed: {reason[:LONGEST_REASON]}")
