"""A lock that admits one process at a time and names it to the others.

The lock ends with the process that holds it, however that ends: it is the kernel's, and what the
file says is for people.
"""

import errno
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from supernet.errors import UserError, masked

BUSY = (errno.EAGAIN, errno.EACCES)
"""What the kernel answers where another process holds a lock."""
LONGEST_COMMAND = 120
"""Characters of a command that are shown."""


def lock_file(path: Path) -> Path:
    """Return the lock of a file or folder: a hidden file beside it."""
    return path.with_name(f".{path.name}.lock")


@contextmanager
def only_one(path: Path, doing: str = "", *, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file or folder; `doing` says in words what it is held for.

    Raises `UserError` naming the process that still holds it after `patience_s`, and where the lock
    file cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    lock = lock_file(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = lock.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {lock} ({error.strerror}): choose another place") from None
    with handle:
        given_up = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in BUSY:
                    raise UserError(
                        f"cannot lock {lock} ({error.strerror}): choose another place"
                    ) from None
                if time.monotonic() >= given_up:
                    raise UserError(
                        f"{_holder(lock)} is {doing or f'writing {path}'}: wait until it is done, "
                        "or give another --out"
                    ) from None
            time.sleep(0.2)
        _sign(lock)
        try:
            yield
        finally:
            os.truncate(handle.fileno(), 0)


def _sign(lock: Path) -> None:
    """Write down who holds the lock; on a full disk it holds unsigned."""
    program = Path(sys.argv[0])
    package = program.name.startswith("__")  # python -m heat
    name = program.parent.name if package else program.name
    words = ["python" if name == "-c" else name, *map(masked, sys.argv[1:])]
    own = {
        "process": os.getpid(),
        "command": " ".join(words)[:LONGEST_COMMAND],
        "host": platform.node(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    try:
        lock.write_text(json.dumps(own), encoding="utf-8")
    except OSError:
        return


def _holder(lock: Path) -> str:
    """Return which process holds the lock, as it wrote there itself."""
    try:
        found = json.loads(lock.read_text(encoding="utf-8"))
        host = f" on {found['host']}" if found["host"] != platform.node() else ""
        return f"process {found['process']}{host} ({found['command']}, since {found['since']})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
