"""Files that are whole or absent: write to a temporary name beside the target, then rename.

Logs grow by whole lines.
A link is followed. Renaming would also put a file in the place of a device or a pipe: these are
refused.
"""

import glob
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from .errors import UserError

BLOCK = 2**16
"""Bytes that are read at once to find the end of a line."""
SYSTEM_FOLDERS = ("/dev", "/proc", "/sys")
"""Files directly in the first, or anywhere in the others, are devices or the kernel's."""


def check_target(path: Path) -> None:
    """Refuse a target that exists and is no regular file, or that cannot exist."""
    folder = os.path.realpath(path.parent)
    devices, *others = SYSTEM_FOLDERS
    special = folder == devices or any(f"{folder}/".startswith(f"{root}/") for root in others)
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder, give a file")
    if special or (path.exists() and not path.is_file()):
        raise UserError(f"cannot write {path}: it is a device or a pipe, give a file")
    place = next((parent for parent in path.parents if parent.exists()), Path())
    if not place.is_dir():
        raise UserError(f"cannot write {path}: {place} is no folder")
    if not os.access(place, os.W_OK):
        raise UserError(f"cannot write {path}: no files can be written to {place}")


def check_replaceable(path: Path, option: str, is_ours: Callable[[Path], bool]) -> None:
    """Refuse a target that cannot be written, or an existing file that HEAT did not write."""
    check_target(path)
    try:
        ours = not path.exists() or not path.stat().st_size or is_ours(path)
    except (OSError, ValueError, RecursionError):
        ours = False
    if not ours:
        raise UserError(
            f"{path} is there already, and not what heat writes there: choose another {option}"
        )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` when the block ends without an error."""
    check_target(path)
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    temporary = path.with_name(f"{_start(path)}{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file and flush it to disk; a last line that a kill cut off is dropped.

    Names of files may be in it that are no UTF-8: they keep their bytes.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as stream:
            size = _whole_lines(stream)
            stream.truncate(size)
            left = f"{line}\n".encode(errors="surrogateescape")
            try:
                while left:
                    left = left[stream.write(left) :]
                os.fsync(stream.fileno())
            except OSError:
                stream.truncate(size)  # of a full disk: half a line would be left
                raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def _whole_lines(stream: FileIO) -> int:
    """Return the bytes of a file up to its last line break."""
    end = stream.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - BLOCK)
        stream.seek(start)
        found = stream.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def remove_remains(path: Path) -> None:
    """Remove what killed processes left of writing a file, or files of a folder.

    For whoever alone may write there: a file that is being written looks the same.
    """
    beside = path.parent.glob(f"{glob.escape(_start(path))}{'[0-9a-f]' * 8}.tmp")
    within = path.glob(f".*.{'[0-9a-f]' * 8}.tmp") if path.is_dir() else ()
    for left in [*beside, *within]:
        with suppress(OSError):
            left.unlink()


def _start(path: Path) -> str:
    """Return how temporary names of a file begin.

    A name may have 255 bytes; cut, it leaves room for what is added.
    """
    return f".{path.name[:40]}."


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
