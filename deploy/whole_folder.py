"""Replaces folders atomically: they are filled under a temporary name, then renamed.

The old folder stays until the new one is finished.
"""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from supernet.errors import UserError

SUFFIX = "heat-tmp"
"""Ends the names of folders that are HEAT's to remove."""


@contextmanager
def replacing_folder(folder: Path, *, fresh: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes `folder` when the block ends without an error.

    A `fresh` one replaces nothing but an empty folder.
    """
    asked, folder = folder, Path(os.path.realpath(folder))
    if Path.cwd().is_relative_to(folder):
        raise UserError(
            f"{asked} would be replaced, and this command runs in it: run it elsewhere, or give a "
            "folder below"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    tidy(folder)
    scratch = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.{SUFFIX}")
    try:
        scratch.mkdir()
        with _held(scratch):
            yield scratch
            _swap(scratch, folder, fresh)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and fresh:
            raise UserError(f"{asked} is no longer empty: give another folder") from None
        # Of a full disk, it names no file; of a file elsewhere, it does.
        if error.filename and not Path(str(error.filename)).is_relative_to(scratch):
            raise
        raise UserError(f"cannot write {asked}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Put back the old folder, where a process was killed in the swap, and remove its remains."""
    old = _old(folder)
    if old.is_dir() and not folder.exists() and not _in_use(old):
        old.rename(folder)
    left = re.compile(rf"\.{re.escape(folder.name)}\.([0-9a-f]{{8}}|old)\.{SUFFIX}")
    for path in folder.parent.iterdir():
        if left.fullmatch(path.name) and not _in_use(path):
            shutil.rmtree(path, ignore_errors=True)


def _swap(scratch: Path, folder: Path, fresh: bool) -> None:
    old = _old(folder)
    shutil.rmtree(old, ignore_errors=True)
    with _held(folder, wait=True):  # under its other name too: nobody puts it back meanwhile
        if folder.exists():
            folder.rmdir() if fresh else folder.rename(old)
        scratch.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old.{SUFFIX}")


@contextmanager
def _held(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the kernel's lock of a folder, which ends with this process."""
    handle = _lock(folder, wait=wait)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _in_use(folder: Path) -> bool:
    """Return whether another process fills the folder."""
    try:
        handle = _lock(folder)
    except BlockingIOError:
        return True
    if handle is not None:
        os.close(handle)
    return False


def _lock(folder: Path, *, wait: bool = False) -> int | None:
    """Return the open handle that holds a folder's lock; None where folders have none."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    with suppress(FileNotFoundError, PermissionError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(handle)
            raise
        except OSError:  # a file system without locks
            os.close(handle)
            return None
        return handle
    return None
