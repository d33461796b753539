"""Runs commands beside a benchmark, whose own stdout is its result."""

import os
import subprocess
import sys


def heat(*arguments: object) -> None:
    """Run a heat command with its stdout on stderr."""
    run_command([sys.executable, "-m", "heat", *map(str, arguments)])


def run_command(command: list[str], **environment: str) -> None:
    """Run a command with its stdout on stderr."""
    print(" ".join(command), file=sys.stderr, flush=True)
    subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, **environment})
