"""Where people read: stderr, as wide as the terminal."""

import sys

from rich.console import Console


def terminal() -> Console:
    """Return stderr's console; wide where nobody's terminal cuts it."""
    return Console(stderr=True, width=None if sys.stderr.isatty() else 120)
