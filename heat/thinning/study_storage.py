"""Where an Optuna study is kept: a journal file or a database, checked before it is written to."""

import json
import os
import sqlite3
import warnings
import weakref
from contextlib import closing
from pathlib import Path

import optuna
import sqlalchemy
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from supernet.errors import UserError

HEARTBEAT_S = 30
STALE_AFTER_S = 300
"""A trial of another machine without news for so long belongs to a killed worker."""
RETRIES = 3
SQLITE_HEAD = b"SQLite format 3\0"
STUDIES = "studies"
"""A table that every database of Optuna has."""


def open_storage(url: str | None) -> optuna.storages.BaseStorage | None:
    """Open a journal file (a path) or a database (a URL); None keeps the study in memory."""
    if url is None:
        return None
    check_storage(url)
    try:
        if "://" not in url:
            _mend(Path(url))
            return optuna.storages.JournalStorage(JournalFileBackend(url))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            retry = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)
            storage = optuna.storages.RDBStorage(
                url,
                heartbeat_interval=HEARTBEAT_S,
                grace_period=STALE_AFTER_S,
                heartbeat_stale_trial_callback=retry,
            )
        weakref.finalize(storage, storage.engine.dispose)  # its connections are closed by nobody
        return storage
    except Exception as error:
        raise _unusable(url, error) from None


def check_storage(url: str) -> None:
    """Refuse a file or database that is something else, or cannot be reached; write nothing."""
    if "://" not in url:
        _check_journal(Path(url))
        return
    try:
        address = sqlalchemy.make_url(url)
        if address.get_backend_name() == "sqlite":
            if not address.database or ":memory:" in address.database:
                raise UserError(
                    f"--study {url} keeps nothing: give sqlite:///FILE.db, or leave it out"
                )
            _check_sqlite(url, Path(address.database))
            return
        engine = sqlalchemy.create_engine(address)
        try:
            engine.connect().close()
        finally:
            engine.dispose()
    except UserError:
        raise
    except ModuleNotFoundError as error:
        if "psycopg" not in str(error.name):
            raise _unusable(url, error) from None
        raise UserError(
            f"--study {url} needs psycopg: pip install 'heatdetr[postgresql]' and give it as "
            "postgresql+psycopg://..."
        ) from None
    except Exception as error:
        raise _unusable(url, error) from None


def _unusable(url: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split("\n(Background")[0].split()) or type(error).__name__
    return UserError(f"--study {url} cannot be opened: {reason[:300]}")


def _check_journal(path: Path) -> None:
    if not path.parent.is_dir():
        raise UserError(f"--study {path}: no folder {path.parent}")
    if path.is_dir():
        raise UserError(f"--study {path} is a folder: give a file or a database URL")
    if not path.exists() or not path.stat().st_size:
        return
    try:
        with path.open("rb") as stream:
            first = stream.readline()
    except OSError as error:
        raise UserError(f"--study {path} cannot be read: {error.strerror}") from None
    if first.startswith(SQLITE_HEAD):
        raise UserError(f"--study {path} is a database: --study sqlite:///{path}")
    try:
        entry = json.loads(first)
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict) or "op_code" not in entry:
        raise UserError(f"--study {path} is no journal of a study: give another file")


def _check_sqlite(url: str, path: Path) -> None:
    if not path.parent.is_dir():
        raise UserError(f"--study {url}: no folder {path.parent}")
    if not path.exists() or not path.stat().st_size:
        return
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = {str(row[0]) for row in rows}
    except sqlite3.Error as error:
        raise UserError(f"--study {url} is no SQLite database: {error}") from None
    if tables and STUDIES not in tables:
        raise UserError(
            f"--study {url} holds something else (table {min(tables)}): give another file"
        )


def _mend(path: Path) -> None:
    """Drop the end of a line that a killed worker left: what would follow it is not read."""
    if not path.exists() or path.read_bytes()[-1:] in (b"", b"\n"):
        return
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        content = path.read_bytes()  # another worker may have been writing
        os.truncate(path, content.rfind(b"\n") + 1)
    finally:
        lock.release()
