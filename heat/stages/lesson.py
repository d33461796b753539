"""How a network learns from a teacher: map by map where both share a grid, else by its boxes."""

import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.edge.score_limits import SHOW_SCORE
from deploy.teachers.asked import Asked
from deploy.teachers.detector import (
    ToSee,
    is_heats,
    load_teacher,
    matched_classes,
    thresholds_of,
)
from deploy.teachers.looking import look
from latency_tables.probe.lock import only_one
from latency_tables.probe.machine import physical_cores
from supernet.data.detection_set import DetectionSet
from supernet.data.soft_labels import with_soft_labels
from supernet.errors import UserError
from supernet.network import Network
from supernet.train.distill import DistilledTask, why_not_dense
from supernet.train.distributed import LONGEST_WAIT, first_process
from supernet.train.task import Task, task_of
from supernet.train.transfer import weights_file

from ..records import Result


@dataclass(frozen=True, slots=True)
class Lesson:
    """A task with a teacher."""

    task: Task
    data: DetectionSet
    """What is trained on, with the teacher's boxes where these are learnt."""
    digest: str
    """Hash of the teacher."""
    facts: Result
    """For the record of the stage."""


def lesson_of(
    asked: Asked, network: Network, data: DetectionSet, folder: Path, *, restart: bool
) -> Lesson:
    """Return the task of training a network on a set with a teacher.

    What the teacher finds is kept in `folder`; with `restart` it replaces what another one found.
    """
    assert asked.teacher is not None
    why = "it is no HeatDETR with its weights"
    if asked.teacher.exists() and is_heats(asked.teacher):
        if weights_file(asked.teacher).resolve().parent == folder.resolve():
            raise UserError(f"--teacher {asked.teacher}: training replaces it, give another --out")
        dense = _dense(asked.teacher, network, data)
        if isinstance(dense, Lesson):
            return dense
        why = dense
    return _soft(asked, network, data, folder, why, restart=restart)


def _dense(path: Path, network: Network, data: DetectionSet) -> Lesson | str:
    """Return the lesson from a network on the same grid, or why there is none."""
    teacher, names, digest = load_teacher(path, network.architecture.input_size)
    if network.heatdetr is None or teacher.heatdetr is None:
        return "one of them is of DETR's family"
    if sorted(names) != sorted(data.names):
        return "its classes are others"
    why = why_not_dense(network.heatdetr.architecture, teacher.heatdetr.architecture)
    if why is not None:
        return why
    _say(f"teacher {path}: {teacher.architecture.name}, its maps are learnt anchor by anchor")
    facts = {"teacher": str(path), "digest": digest, "learnt": "maps"}
    task = DistilledTask(network.heatdetr, data, teacher.heatdetr, names)
    return Lesson(task, data, digest, facts)


def _soft(
    asked: Asked, network: Network, data: DetectionSet, folder: Path, why: str, *, restart: bool
) -> Lesson:
    """Return the lesson from the boxes that a teacher finds on the original images."""
    file = folder / "teacher.jsonl"
    images = [ToSee(record.path, (record.height, record.width)) for record in data.records]
    # Processes that train together look one after the other: the first fills the file.
    with only_one(file, patience_s=LONGEST_WAIT.total_seconds()):
        option = "--restart replaces it, another --out keeps it"
        replace = restart and first_process()
        threads = physical_cores()
        looked = look(asked, images, file, threads=threads, option=option, replace=replace)
    facts = looked.teacher
    class_of, left = matched_classes(facts.names, data.names)
    found = {index: seen.found for index, seen in enumerate(looked.seen) if seen is not None}
    taught, added = with_soft_labels(data, found, class_of, thresholds_of(facts, SHOW_SCORE))
    _say(
        f"teacher {facts.name} ({facts.kind}): {added} boxes beside {data.num_boxes} labels, "
        f"weighted by score; its maps are not learnt: {why}"
    )
    if left:
        _say(f"teacher's classes that the data does not have: {_some(left)}")
    if not added:
        _say("warning: the teacher adds no box: all that it finds is labelled, or it finds nothing")
    record: Result = {
        "teacher": facts.name,
        "kind": facts.kind,
        "digest": facts.digest,
        "learnt": "boxes",
        "boxes": added,
        "classes_left_out": left,
    }
    return Lesson(task_of(network, taught), taught, facts.digest, record)


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:8])}{f' and {len(names) - 8} more' if len(names) > 8 else ''}"


def _say(text: str) -> None:
    if first_process():
        print(text, file=sys.stderr, flush=True)
