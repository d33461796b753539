"""A lock file that admits one writer at a time; the lock ends with the process that holds it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from supernet.errors import DeviceError, TableError


@contextmanager
def only_one(path: Path, *, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file.

    Raises `TableError` where another process still holds it after `patience_s`, `DeviceError` where
    the lock file cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = lock.open("a+")
    except OSError as error:
        raise DeviceError(f"cannot write {lock} ({error.strerror}): choose another place") from None
    with handle:
        given_up = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= given_up:
                    raise TableError(
                        f"another process is writing {path}: wait until it is done, or write "
                        "elsewhere (--out)"
                    ) from None
            time.sleep(0.2)
        yield
