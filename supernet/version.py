"""The version, stated once, and the commit that is run."""

import subprocess
from pathlib import Path

__version__ = "0.2.0"

COMMIT_FILE = Path(__file__).with_name("commit.txt")
"""Written when a package is built (`setup.py`); absent in a checkout."""


def commit() -> str | None:
    """Return the commit of this code: that of the build or of the checkout, + if it was changed."""
    if COMMIT_FILE.is_file():
        return COMMIT_FILE.read_text(encoding="utf-8").strip() or None
    return commit_of(Path(__file__).parent.parent)


def commit_of(checkout: Path) -> str | None:
    """Return the commit of a checkout, `0123456789ab`, + if files were changed; None elsewhere."""
    if not (checkout / ".git").exists():
        return None
    git = ["git", "-C", str(checkout), "describe", "--always", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(
            [*git, "--dirty=+"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def version_line() -> str:
    """Return what `heat --version` prints."""
    known = commit()
    return f"{__version__} ({known})" if known else __version__
