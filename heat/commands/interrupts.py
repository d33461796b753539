"""Ctrl-C and SIGTERM end a command within seconds, whatever it is doing.

Python raises the exception of a signal between two of its own instructions: a step of torch, or the
compiling of a network, may take a minute. A thread waits for the signals too, and ends the process
where it does not end by itself. Nothing is lost by that: files are replaced whole.
"""

import atexit
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

PATIENCE_S = 4.0
"""How long a command may take to end by itself: a camera that hangs takes 3 s of it."""
ENDING = (signal.SIGINT, signal.SIGTERM)
CODES = tuple(128 + number for number in ENDING)
"""Exit codes of commands that were ended."""
KEPT = (
    "what was finished is kept: the same command goes on (train, supernet and pretrain with "
    "--resume)"
)


class Terminated(KeyboardInterrupt):
    """SIGTERM came: what ends on Ctrl-C ends on it in the same way."""


def line_of(interrupt: KeyboardInterrupt) -> tuple[str, int]:
    """Return the line that an ended command prints, and its exit code: 128 and the signal."""
    if isinstance(interrupt, Terminated):
        return f"terminated; {KEPT}", 128 + signal.SIGTERM
    return f"interrupted; {KEPT}", 128 + signal.SIGINT


@contextmanager
def ending_soon() -> Iterator[None]:
    """Raise `Terminated` on SIGTERM, and end the process where a signal does not end the block.

    Signals that the process was started to ignore stay ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    before = signal.getsignal(signal.SIGTERM)
    if before is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    other = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(ours,), name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(other)
        signal.signal(signal.SIGTERM, before)
        theirs.close()


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _watch(signals: socket.socket) -> None:
    """Wait for a signal that ends the process, then for the other side to be closed."""
    with signals:
        number = 0
        while number not in ENDING:
            received = signals.recv(1)
            if not received:
                return
            number = received[0]
        signals.settimeout(PATIENCE_S)
        try:
            while signals.recv(1):
                pass  # a second signal
            return
        except TimeoutError:
            pass
    line, code = line_of(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
    print(f"error: {line}", file=sys.stderr)
    end_now(code)


def ignore_at_last() -> None:
    """Ignore signals once Python has run all that is registered for its exit.

    It sets its own handlers back before libraries are taken apart, which with torch takes a while.
    To be called before anything else is registered.
    """
    atexit.register(lambda: [signal.signal(number, signal.SIG_IGN) for number in ENDING])


def finished(code: int) -> None:
    """Let a signal end the process with the exit code of its command, which is done."""
    _flush()
    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: end_now(code))


def end_now(code: int) -> NoReturn:
    """End the process without taking the interpreter apart, which with torch takes a second."""
    if "multiprocessing" in sys.modules:  # not imported for it: signals come early too
        import multiprocessing

        for child in multiprocessing.active_children():
            child.kill()
    _flush()
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, RuntimeError):  # the last: the signal came in a flush
            stream.flush()
