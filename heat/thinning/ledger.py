"""The thinning ledger: `thinning.csv`."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from supernet.atomic import write_text
from supernet.heatdetr.supernet import SearchSpace

from .greedy import Trial
from .moves import Logits

LEDGER = (
    "step",
    "move",
    "stage",
    "position",
    "widths",
    "blocks",
    "global_block",
    "importance",
    "ap_drop",
    "ms",
    "fps",
    "ratio",
    "chosen",
    "reason",
    "seconds",
)
"""Columns of `thinning.csv`."""


def write_ledger(path: Path, ledger: Sequence[Trial], space: SearchSpace, logits: Logits) -> None:
    """Write every move that was scored, taken or not, one line each."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(LEDGER)
    for trial in ledger:
        architecture = trial.move.after.architecture(space, logits)
        writer.writerow(
            [
                trial.step,
                trial.move.kind,
                trial.move.stage,
                "" if trial.move.position is None else trial.move.position,
                " ".join(str(width) for width in architecture.widths),
                " ".join(string or "-" for string in architecture.blocks),
                architecture.global_block,
                f"{trial.importance:.6g}",
                f"{trial.ap_drop:.6g}",
                f"{trial.ms:.4f}",
                f"{trial.fps:.4f}",
                f"{trial.ratio:.6g}",
                int(trial.chosen),
                trial.reason,
                f"{trial.seconds:.3f}",
            ]
        )
    write_text(path, stream.getvalue())
