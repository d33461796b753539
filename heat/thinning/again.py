"""The command that goes on after a broken promise: that of the run which thinning is a part of."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_COMMAND: ContextVar[str] = ContextVar("again", default="heat thin")


@contextmanager
def part_of(command: str) -> Iterator[None]:
    """Let a command that thins and exports by itself be the one that is named; also a decorator."""
    token = _COMMAND.set(command)
    try:
        yield
    finally:
        _COMMAND.reset(token)


def run_again() -> str:
    """Return what to do where a promise is broken."""
    return f"run {_COMMAND.get()} again"
