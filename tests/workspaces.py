"""Workspaces in which something was done, without measuring."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from heat.thinning.thinned import Thinned
from tests.command_line import run

SMALL_SPACE = ["--space", "micro", "--input-size", "96x128"]


def thin_by_estimate(out: Path, *more: object) -> None:
    """Thin for a Core i7: nothing is measured."""
    far = ["--device", "cpu-i7", *more, "--out", out]
    code, _, errors = run("profile", "--estimate", *SMALL_SPACE, *far)
    assert code == 0, errors
    code, _, errors = run("thin", "--target-fps", 30, "--trust-table", *far)
    assert code == 0, errors


def record(**changes: Any) -> Thinned:
    """Return what thinning for 25 FPS recorded."""
    values: dict[str, Any] = {field.name: None for field in fields(Thinned)} | {
        "target_fps": 25.0, "percentile": "p50", "predicted_fps": 26.0, "held_out_error": 0.02,
        "here": True, "runtime": "onnxruntime", "precision": "f32", "threads": 1,
    }  # fmt: skip
    return Thinned(**values | changes)
