"""`heat label`: a teacher labels images."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deploy.edge.found import once
from deploy.edge.score_limits import SHOW_SCORE, Limits
from deploy.teachers.asked import Asked
from deploy.teachers.detector import Seen, TeacherFacts, ToSee, matched_classes
from deploy.teachers.looking import look
from latency_tables.probe.lock import only_one
from latency_tables.probe.machine import physical_cores
from supernet.data.best_thresholds import best_thresholds
from supernet.data.detection_set import DetectionSet
from supernet.data.evaluate import Found, result_rows
from supernet.data.image_files import list_images
from supernet.data.pseudo_labels import ImageFound, label_images
from supernet.data.true_positives import MATCH_IOU
from supernet.errors import DataError, UserError
from supernet.train.threads import threads_now
from supernet.version import __version__

from ..records import Result
from .label_folder import LabelFolder

OPTION = "give another --out"


def label(
    images: Path,
    asked: Asked,
    out: Path,
    *,
    score: float | None,
    val: DetectionSet | None,
    names: Sequence[str] | None,
) -> Result:
    """Write what a teacher finds on all images of a folder as a COCO set.

    Without a `score` the thresholds of the teacher's card hold, else those of best F1 on `val`. Of
    its classes only `names` are kept, where they are given.
    """
    if not images.is_dir():
        raise DataError(f"no folder of images at {images}")
    paths = list_images(images)
    if not paths:
        raise DataError(f"{images} has no image")
    folder = LabelFolder(out)
    folder.check(images)
    with only_one(folder.seen, f"labelling into {out}"):
        folder.check(images)  # again: another process may have ended just now
        return _label(images, paths, asked, folder, score=score, val=val, names=names)


def _label(
    images: Path,
    paths: Sequence[Path],
    asked: Asked,
    folder: LabelFolder,
    *,
    score: float | None,
    val: DetectionSet | None,
    names: Sequence[str] | None,
) -> Result:
    threads = threads_now(physical_cores())
    looked = look(
        asked, [ToSee(path) for path in paths], folder.seen, threads=threads, option=OPTION
    )
    teacher = looked.teacher
    print(f"teacher {teacher.name}: {teacher.kind}", file=sys.stderr)
    kept = teacher.names if names is None else tuple(names)
    class_of, left = matched_classes(teacher.names, kept)
    thresholds, source = _thresholds(teacher, asked, kept, folder, score, val, threads)
    found = [
        ImageFound(
            path.relative_to(images).as_posix(),
            seen.image_hw,
            _mapped(seen, class_of, np.array(thresholds, np.float32)),
        )
        for path, seen in zip(paths, looked.seen, strict=True)
        if seen is not None
    ]
    broken = [str(path) for path, seen in zip(paths, looked.seen, strict=True) if seen is None]
    for path in broken:
        print(f"warning: {path} cannot be decoded: left out", file=sys.stderr)
    if not found:
        raise DataError(f"{images}: none of its {len(paths)} images can be decoded")
    info = {
        "description": f"labels by a teacher, {teacher.name} (heat label)",
        "heat": __version__,
        "teacher": teacher.name,
        "teacher_kind": teacher.kind,
        "teacher_digest": teacher.digest,
        "thresholds": dict(zip(kept, thresholds, strict=True)),
        "thresholds_are": source,
    }
    labels = label_images(found, kept, thresholds, info)
    folder.link(images)
    folder.write(json.dumps(labels.file) + "\n", labels.table())
    counts = Counter(kept[each["category_id"] - 1] for each in labels.file["annotations"])
    if not counts:
        print("warning: nothing reaches its threshold: no label was written", file=sys.stderr)
    labelled = {each["image_id"] for each in labels.file["annotations"]}
    return {
        "data": str(folder.root),
        "annotations": str(folder.annotations),
        "teacher": teacher.name,
        "kind": teacher.kind,
        "images": len(found),
        "images_without_labels": len(found) - len(labelled),
        "not_decoded": broken,
        "looked_at_now": looked.new,
        "labels": {name: counts[name] for name in kept},
        "thresholds": info["thresholds"],
        "thresholds_are": source,
        "classes_left_out": left,
        "uncertain": len(labels.uncertain),
        "uncertain_list": str(folder.uncertain),
    }


def _mapped(seen: Seen, class_of: dict[int, int], limits: float | Limits = 0.0) -> Found:
    """Return what was found of the classes that are kept, numbered as they are, each object once.

    `limits` as of `once`, by the number of a class that is kept.
    """
    boxes, scores, labels = seen.found
    own = np.isin(labels, list(class_of))
    mapped = np.array([class_of[int(label)] for label in labels[own]], dtype=np.int64)
    boxes, scores = boxes[own], scores[own]
    rows = once(boxes, scores, mapped, limits)
    return boxes[rows], scores[rows], mapped[rows]


def _thresholds(
    teacher: TeacherFacts,
    asked: Asked,
    names: Sequence[str],
    folder: LabelFolder,
    score: float | None,
    val: DetectionSet | None,
    threads: int,
) -> tuple[list[float], str]:
    """Return the lowest score of each class, and where it comes from."""
    if score is not None:
        return [score] * len(names), "asked for"
    stated = dict(teacher.thresholds)
    source = "best F1, as the teacher's card states it"
    if not any(value is not None for value in stated.values()):
        if val is None:
            raise UserError(
                f"--score auto: {teacher.name} states no thresholds: give --data DIR with a "
                f"labelled val split to find them, or a number (--score {SHOW_SCORE:g})"
            )
        stated = _calibrated(teacher, asked, folder, val, threads)
        source = (
            f"best F1 (IoU {MATCH_IOU:g}) on {len(val.records)} images of {val.root.name} "
            f"{val.split}"
        )
    found = [stated.get(name) for name in names]
    unknown = [name for name, value in zip(names, found, strict=True) if value is None]
    if unknown:
        shown = ", ".join(unknown[:5])
        print(f"warning: no threshold for {shown}: {SHOW_SCORE:g} is used", file=sys.stderr)
    return [SHOW_SCORE if value is None else value for value in found], source


def _calibrated(
    teacher: TeacherFacts, asked: Asked, folder: LabelFolder, val: DetectionSet, threads: int
) -> dict[str, float | None]:
    """Return the thresholds of best F1 on labelled images."""
    class_of, _ = matched_classes(teacher.names, val.names)
    images = [ToSee(record.path, (record.height, record.width)) for record in val.records]
    looked = look(asked, images, folder.seen, threads=threads, option=OPTION)
    rows = [
        row
        for record, seen in zip(val.records, looked.seen, strict=True)
        if seen is not None
        for row in result_rows(record, _mapped(seen, class_of), val)
    ]
    return best_thresholds(rows, val)
