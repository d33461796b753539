"""Where people read: stderr, as wide as the terminal."""

import sys

from rich.console import Console


def terminal() -> Console:
    """Return stderr's console; wide where nobody's terminal cuts it.

    Text is printed as it is: names of classes, files and devices are no markup (`[/x]`, `:car:`).
    """
    width = None if sys.stderr.isatty() else 120
    return Console(stderr=True, width=width, markup=False, emoji=False)
