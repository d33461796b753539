"""The GPU that results are of."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from latency_tables.probe.machine import detect_gpus


def facts(*, rehearsed: bool) -> dict[str, Any]:
    """Return what two calls must have in common for their results to be of one day."""
    gpus = detect_gpus()
    found = {**gpus[0].to_json()} if gpus else {}
    found.pop("clock_now", None)
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = None
    return {
        "rehearsed": rehearsed,
        "device": "this CPU, a rehearsal" if rehearsed else found,
        "torch": torch,
    }
