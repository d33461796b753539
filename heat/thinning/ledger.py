"""The thinning ledger: `thinning.csv`."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from supernet.atomic import write_text
from supernet.errors import UserError
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


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """A move that was scored, as far as it is drawn and reported."""

    step: int
    move: str
    stage: int
    ms: float
    fps: float
    ap_drop: float
    ratio: float
    """Accuracy lost for each frame per second gained."""
    chosen: bool


def read_ledger(path: Path) -> list[LedgerRow]:
    """Read `thinning.csv`; raise `UserError` where it is missing or damaged."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return [
                LedgerRow(
                    int(row["step"]),
                    row["move"],
                    int(row["stage"]),
                    float(row["ms"]),
                    float(row["fps"]),
                    float(row["ap_drop"]),
                    float(row["ratio"]),
                    row["chosen"] == "1",
                )
                for row in csv.DictReader(stream)
            ]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}: run heat thin again") from None
    except (KeyError, TypeError, ValueError, csv.Error):
        raise UserError(f"{path} is no thinning ledger: run heat thin again") from None


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
