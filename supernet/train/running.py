"""How a training run is carried out, and its result."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ..errors import UserError
from .deadline import Budget

Judge = Callable[[Any], Mapping[str, float]]
"""Scores a network, for instance by its AP; a score that is not known is left out."""


def most_workers() -> int:
    """Return how many processes may load images: eight a core, or 32 on a small machine."""
    return max(32, 8 * (os.cpu_count() or 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """How a run is carried out: nothing here is meant to change the weights after an epoch."""

    resume: bool = False
    """Continue an unfinished run, or one of fewer epochs."""
    restart: bool = False
    """Start again, replacing the previous run."""
    workers: int | None = None
    """Processes that load images; see `feed.default_workers` for how many by default."""
    threads: int | None = None
    """Most threads on a CPU, torch's number by default; fewer while others keep cores busy, unless
    OMP_NUM_THREADS fixes the number."""
    compile: bool = False
    """Let torch compile the network first."""
    tensorboard: bool = False
    """Write event files for TensorBoard too."""
    judge: Judge | None = None
    """Scores the averaged weights every `judge_every` epochs."""
    judged_on: str = ""
    """Digest of what it scores on: scores of other images are not compared."""
    judge_every: int = 10
    """Epochs between two scores; the last epoch always has one. 0 for none."""
    patience: int | None = None
    """Epochs without a higher AP after which training stops; None trains all epochs."""
    budget: Budget | None = None
    """Time it may take: fewer epochs are trained where steps are slower than planned."""

    def __post_init__(self) -> None:
        """Refuse options that no run can have."""
        if self.workers is not None and self.workers < 0:
            raise UserError(f"--workers {self.workers}: 0 or more processes")
        if self.workers is not None and self.workers > most_workers():
            raise UserError(f"--workers {self.workers}: at most {most_workers()} processes here")
        if self.judge_every < 0:
            raise UserError(f"--eval-every {self.judge_every}: epochs, or 0 for no evaluation")
        if self.patience is None:
            return
        if self.patience < 1:
            raise UserError(f"--patience {self.patience}: at least 1 epoch")
        if self.judge is None or not self.judge_every:
            raise UserError(
                f"--patience {self.patience} compares AP on the val split: a val split and an "
                "--eval-every of at least 1 are needed"
            )


class TrainFacts(TypedDict):
    """The record of a training run in `run.json`."""

    checkpoint: str
    epochs: int
    planned_epochs: int
    shortened_after: list[int]
    stopped_early: bool
    images_per_second: float
    seconds: float
    skipped_steps: int
    run: NotRequired[str]
    """Hash of what was trained, on what and for how many epochs; absent in older records."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """The result of a finished training run."""

    checkpoint: Path
    epochs: int
    """Epochs that were trained."""
    planned_epochs: int
    """Epochs that were asked for."""
    shortened_after: list[int]
    """Epochs after which fewer were planned, because the rest did not fit into the budget."""
    stopped_early: bool
    """Whether it ended before the planned epochs because AP no longer rose."""
    images_per_second: float
    seconds: float
    skipped_steps: int
    """Steps without a finite loss."""
    finished_before: bool
    """The run was finished before; nothing was trained."""
    run: str
    """Hash of what was trained, on what and for how many epochs."""
    leads: bool = True
    """Whether this process, of several, is the one that writes."""

    def is_recorded(self, before: Mapping[str, object] | None) -> bool:
        """Return whether the record of a stage is of this run, which was finished before.

        A training that was killed between its last epoch and its record leaves an older one.
        """
        return (
            self.finished_before and before is not None and before.get("run", self.run) == self.run
        )

    def facts(self) -> TrainFacts:
        """Return the record of a stage."""
        return {
            "checkpoint": str(self.checkpoint),
            "epochs": self.epochs,
            "planned_epochs": self.planned_epochs,
            "shortened_after": self.shortened_after,
            "stopped_early": self.stopped_early,
            "images_per_second": round(self.images_per_second, 2),
            "seconds": round(self.seconds, 1),
            "skipped_steps": self.skipped_steps,
            "run": self.run,
        }
