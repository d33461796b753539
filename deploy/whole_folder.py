"""Replaces folders atomically: they are filled under a temporary name, then renamed.

The old folder stays until the new one is finished.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from supernet.errors import UserError


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `folder` when the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    tidy(folder)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    scratch.chmod(0o755)
    try:
        yield scratch
        old = _old(folder)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        scratch.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        # Of a full disk, it names no file; of a file elsewhere, it does.
        if error.filename is not None and scratch not in Path(str(error.filename)).parents:
            raise
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Put back the old folder, where a process was killed in the swap, and remove its remains."""
    old = _old(folder)
    if old.is_dir() and not folder.exists():
        old.rename(folder)
    left = re.compile(rf"\.{re.escape(folder.name)}\.([a-z0-9_]{{8}}|old)")  # as mkdtemp names
    for path in folder.parent.iterdir():
        if left.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")
