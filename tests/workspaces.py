"""Workspaces in which something was done, without measuring."""

from pathlib import Path

from tests.command_line import run

SMALL_SPACE = ["--space", "micro", "--input-size", "96x128"]


def thin_by_estimate(out: Path, *more: object) -> None:
    """Thin for a Core i7: nothing is measured."""
    far = ["--device", "cpu-i7", *more, "--out", out]
    code, _, errors = run("profile", "--estimate", *SMALL_SPACE, *far)
    assert code == 0, errors
    code, _, errors = run("thin", "--target-fps", 30, "--trust-table", *far)
    assert code == 0, errors
