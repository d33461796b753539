"""Evaluations that survive a kill: one JSON line each, appended and flushed to disk.

A search asks for the same evaluations in the same order every time, so a search that was killed and
is started again finds all it had, goes on at the step where it was, and ends with the same result.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from supernet.atomic import append_line, write_text


def fingerprint(**facts: Any) -> str:
    """Return a short hash of everything that the evaluations depend on."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Journal:
    """Evaluations of one search, by key; a file of another search is replaced by the first one."""

    def __init__(self, path: Path | None, of: str) -> None:
        """Read what exists. `of` is the search's fingerprint; without a path nothing is kept."""
        self._path = path
        self._known: dict[str, object] = {}
        self._header = {"search": of}
        self._begun = False
        if path is None:
            return
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        # What follows the last line break was cut off by a kill.
        records = [_record(line) for line in lines[:-1]]
        if not records or records[0] != self._header:
            return
        self._begun = True
        whole = 0
        for record, line in zip(records, lines, strict=False):
            if record is None:
                break
            whole += len(line) + 1
            if "key" in record:
                self._known[str(record["key"])] = record["value"]
        os.truncate(path, whole)

    def __len__(self) -> int:
        """Return the number of evaluations kept."""
        return len(self._known)

    def value(self, key: str, take: Callable[[], Any]) -> Any:
        """Return the value of a key; one that is not known is computed and appended."""
        if key not in self._known:
            self._known[key] = take()
            if self._path is not None:
                self._begin()
                append_line(self._path, json.dumps({"key": key, "value": self._known[key]}))
        return self._known[key]

    def _begin(self) -> None:
        """Write the header, unless it is there: several candidates share one file."""
        if self._begun or self._path is None:
            return
        first = self._path.read_bytes().split(b"\n")[0] if self._path.exists() else b""
        if _record(first) != self._header:
            write_text(self._path, json.dumps(self._header) + "\n")
        self._begun = True

    def forget(self) -> None:
        """Drop everything: the search is over."""
        self._known.clear()
        self._begun = False
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _record(line: bytes) -> dict[str, object] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
