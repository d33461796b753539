"""The record of a training: kept where the run was finished before, else written with its curve."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from supernet.checkpoint import read_info
from supernet.train.running import TrainResult

from ..records import Result
from ..workspace import Workspace


def record_training(
    workspace: Workspace,
    stage: Literal["pretrain", "supernet", "train"],
    folder: Path,
    done: TrainResult,
    facts: Callable[[], Result],
) -> Result:
    """Return the record of a training in `folder`, which the leading process writes.

    `facts` are looked up only where there is no record of this run yet.
    """
    before = workspace.stages().get(stage)
    if before is not None and done.is_recorded(before):
        return before
    result = {**done.facts(), **facts()}
    if not done.leads:
        return result
    from ..views.learning import draw_learning  # matplotlib: slow to import

    draw_learning(read_info(done.checkpoint).history, folder / "learning.svg")
    return workspace.record(stage, result)
