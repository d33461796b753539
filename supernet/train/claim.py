"""One training at a time in a folder: a lock that names the process holding it."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from ..errors import UserError


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; raise `UserError` naming the process that holds it already.

    The lock ends with the process, however that ends.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    lock = folder / ".training.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = lock.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {lock}: {error.strerror}") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{_holder(lock)} is training in {folder}: wait until it is done, or give another "
                "--out"
            ) from None
        handle.truncate(0)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        handle.write(json.dumps({"process": os.getpid(), "since": now}))
        handle.flush()
        try:
            yield
        finally:
            handle.truncate(0)


def _holder(lock: Path) -> str:
    """Return which process holds the lock, as it wrote there itself."""
    try:
        found = json.loads(lock.read_text(encoding="utf-8"))
        return f"process {found['process']} (since {found['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
