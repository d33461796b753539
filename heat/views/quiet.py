"""`--quiet`: of stderr only warnings and errors are left."""

import io
from typing import TextIO

KEPT = ("warning:", "error:")
"""Beginnings of the lines that are passed on."""


class Quiet(io.TextIOBase):
    """A stream that passes on whole lines of warnings and errors, and drops the others."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._line = stream, ""

    def writable(self) -> bool:
        """Return that it can be written to."""
        return True

    def write(self, text: str) -> int:
        """Take text; print the lines that are complete and kept."""
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            if line.startswith(KEPT):
                self._stream.write(line + "\n")
        return len(text)

    def flush(self) -> None:
        """Flush what was passed on."""
        self._stream.flush()
