"""Runs `heat` commands in this process."""

import contextlib
import io
import json
from typing import Any

from heat.cli import main

SMALL = ["--space", "micro", "--input-size", "96x128", "--threads", "1"]


def run(*arguments: object) -> tuple[int, dict[str, Any], str]:
    """Run a command in this process; return exit code, JSON line, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    lines = out.getvalue().splitlines()
    return code, json.loads(lines[-1]) if lines else {}, err.getvalue()


def fails(code: int, *arguments: object) -> str:
    """Run a command that must fail with one clear line; return that line."""
    found, _, errors = run(*arguments)
    assert found == code, errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("error: ") and "Traceback" not in errors
    return last
