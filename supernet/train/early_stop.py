"""When a training stops early: after a number of epochs without a higher AP."""

import sys
from collections.abc import Sequence
from pathlib import Path

from ..checkpoint import EpochRow


def best_epoch(history: Sequence[EpochRow]) -> int | None:
    """Return the epoch of the highest AP, the first of equal ones; None where none has any."""
    best = _best(history)
    return None if best is None else int(best["epoch"])


def epochs_without_gain(history: Sequence[EpochRow]) -> int:
    """Return the epochs from the best one to the last that has an AP; 0 while no AP is above 0.

    The first scores of a training are often 0: patience does not start there.
    """
    best = _best(history)
    if best is None or best["ap"] <= 0:
        return 0
    return max(int(row["epoch"]) for row in history if "ap" in row) - int(best["epoch"])


def stop_line(history: Sequence[EpochRow], planned: int) -> str:
    """Return the line that is printed where a training stopped early after `history`."""
    best = _best(history)
    assert best is not None
    return (
        f"stopped early at epoch {history[-1]['epoch']} of {planned}: AP has not risen for "
        f"{epochs_without_gain(history)} epochs ({best['ap']:.4f} at epoch {best['epoch']}); "
        "--resume with a larger --patience goes on"
    )


def forget_scores(history: Sequence[EpochRow], best: Path | None) -> None:
    """Drop the AP of epochs, and the weights of the `best`: the val split was another then."""
    for row in history:
        row.pop("ap", None)
        row.pop("ap50", None)
    if best is not None:
        best.unlink(missing_ok=True)
        print(
            "warning: the val split has changed since this training began: the AP of its earlier "
            "epochs is not compared",
            file=sys.stderr,
        )


def _best(history: Sequence[EpochRow]) -> EpochRow | None:
    scored = [row for row in history if row.get("ap", -1) >= 0]
    return max(scored, key=lambda row: float(row["ap"])) if scored else None
