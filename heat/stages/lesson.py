"""How a network learns from a teacher: map by map where both share a grid, else by its boxes."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deploy.edge.found import once
from deploy.edge.score_limits import SHOW_SCORE, Limits
from deploy.teachers.asked import Asked
from deploy.teachers.detector import (
    ToSee,
    is_heats,
    load_teacher,
    matched_classes,
    refuse_stated,
    thresholds_of,
)
from deploy.teachers.looking import look
from latency_tables.probe.lock import only_one
from latency_tables.probe.machine import physical_cores
from supernet.checkpoint import weights_file
from supernet.data.detection_set import DetectionSet
from supernet.data.evaluate import Found
from supernet.data.image_files import list_images
from supernet.data.soft_labels import with_images, with_soft_labels
from supernet.errors import DataError, UserError
from supernet.heatdetr.detector import Detector
from supernet.network import Network
from supernet.train.distill import DistilledTask, class_order, why_not_dense
from supernet.train.distributed import LONGEST_WAIT, first_process
from supernet.train.task import Task, task_of
from supernet.train.threads import threads_now

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
    asked: Asked,
    network: Network,
    data: DetectionSet,
    folder: Path,
    *,
    unlabelled: Path | None = None,
    restart: bool,
) -> Lesson:
    """Return the task of training a network on a set with a teacher, which labels more images.

    Maps are learnt where teacher and network have the same, on all images; else the teacher's boxes
    are learnt. On images of the folder `unlabelled` they always are. What the teacher finds is kept
    in `folder`; with `restart` it replaces what another one found.
    """
    assert asked.teacher is not None
    refuse_stated(asked)
    labelled = len(data.records)
    if unlabelled is not None:
        data = with_unlabelled(data, unlabelled)
    maps = _maps(asked.teacher, network, data, folder)
    facts: dict[str, object] = {"teacher": str(asked.teacher)}
    task: Task
    if isinstance(maps, str):
        data, found = _boxes(asked, data, 0, labelled, folder, restart=restart)
        _say(f"its boxes are learnt, not its maps: {maps}")
        facts |= {**found, "learnt": "boxes"}
        task = task_of(network, data)
    else:
        _say(f"teacher {asked.teacher}: {maps.network.architecture.name}, its maps are learnt")
        facts |= {"digest": maps.digest}
        if len(data.records) > labelled:
            data, found = _boxes(asked, data, labelled, labelled, folder, restart=restart)
            facts |= {**found}
        facts |= {"learnt": "maps"}
        assert network.heatdetr is not None
        task = DistilledTask(network.heatdetr, data, maps.network, maps.names)
    return Lesson(task, data, str(facts["digest"]), facts)


def with_unlabelled(data: DetectionSet, folder: Path) -> DetectionSet:
    """Return a set with the images of a folder, which have no labels, after its own."""
    if not folder.is_dir():
        raise DataError(f"--unlabelled {folder}: no such folder")
    images = list_images(folder)
    own = {os.path.realpath(record.path) for record in data.records}
    others = [path for path in images if os.path.realpath(path) not in own]
    if len(others) < len(images):
        _say(
            f"--unlabelled {folder}: {len(images) - len(others)} of its {len(images)} images are "
            "in the training data: their labels hold"
        )
    both = with_images(data, others)
    if len(both.records) == len(data.records):
        raise DataError(f"--unlabelled {folder}: no image in this folder but those of the data")
    return both


class _Maps(NamedTuple):
    """A network whose maps can be learnt, its classes, and the hash of its file."""

    network: Detector
    names: Sequence[str]
    digest: str


def _maps(path: Path, network: Network, data: DetectionSet, folder: Path) -> _Maps | str:
    """Return a teacher on the same grid, or why it is none."""
    if not path.exists() or not is_heats(path):
        return "it is no HeatDETR with its weights"
    if weights_file(path).resolve().parent == folder.resolve():
        raise UserError(f"--teacher {path}: training replaces it, give another --out")
    teacher, names, digest = load_teacher(path, network.architecture.input_size)
    if network.heatdetr is None or teacher.heatdetr is None:
        return "one of both is of DETR's family"
    if class_order(names, data.names) is None:
        return "its classes are others"
    why = why_not_dense(network.heatdetr.architecture, teacher.heatdetr.architecture)
    return why or _Maps(teacher.heatdetr, names, digest)


def _boxes(
    asked: Asked,
    data: DetectionSet,
    first: int,
    labelled: int,
    folder: Path,
    *,
    restart: bool,
) -> tuple[DetectionSet, Result]:
    """Return the set with the teacher's boxes on the images from `first` on, and their record.

    Images after the `labelled` ones on which it finds nothing are left out: they may show objects.
    """
    file = folder / "teacher.jsonl"
    images = [ToSee(each.path, (each.height, each.width)) for each in data.records[first:]]
    # Processes that train together look one after the other: the first fills the file.
    with only_one(file, patience_s=LONGEST_WAIT.total_seconds()):
        looked = look(
            asked,
            images,
            file,
            threads=threads_now(physical_cores()),
            option="--restart replaces it, another --out keeps it",
            replace=restart,
        )
    teacher = looked.teacher
    class_of, left = matched_classes(teacher.names, data.names)
    limits = thresholds_of(teacher, SHOW_SCORE)
    found = {
        first + index: _once(seen.found, class_of, limits)
        for index, seen in enumerate(looked.seen)
        if seen is not None
    }
    taught, added = with_soft_labels(data, found, class_of, limits)
    more = [record for record in taught.records[labelled:] if len(record.labels)]
    empty = len(taught.records) - labelled - len(more)
    _say(
        f"teacher {teacher.name} ({teacher.kind}): {added} boxes beside {data.num_boxes} labels, "
        f"weighted by score{f'; nothing on {empty} unlabelled images' if empty else ''}"
    )
    if left:
        shown = f"{', '.join(left[:8])}{f' and {len(left) - 8} more' if len(left) > 8 else ''}"
        _say(f"teacher's classes that the data does not have: {shown}")
    if not added:
        _say("warning: the teacher adds no box: all that it finds is labelled, or it finds nothing")
    record: Result = {
        "kind": teacher.kind,
        "digest": teacher.digest,
        "boxes": added,
        "unlabelled": len(more),
        "classes_left_out": left,
    }
    return taught.of([*taught.records[:labelled], *more]), record


def _once(found: Found, class_of: Mapping[int, int], limits: Limits) -> Found:
    """Return one box of each object, of the classes that the data has."""
    boxes, scores, labels = found
    own = np.isin(labels, list(class_of))
    boxes, scores, labels = boxes[own], scores[own], labels[own]
    rows = once(boxes, scores, labels, limits)
    return boxes[rows], scores[rows], labels[rows]


def _say(text: str) -> None:
    if first_process():
        print(text, file=sys.stderr, flush=True)
