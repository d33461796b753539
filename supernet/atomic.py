"""Files that are whole or absent: write to a temporary name beside the target, then rename.

A link is followed. Renaming would also put a file in the place of a device or a pipe: these are
refused.
"""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import UserError

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
    except (OSError, ValueError):
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
    # A name may have 255 bytes; cut, it leaves room for what is added.
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.tmp")
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


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)
