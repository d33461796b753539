"""Finds images of a detection set that cannot be used as they are: by decoding every one."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from ..errors import DataError
from ..letterbox import read_image, why_unread
from ..progress import Progress
from .detection_set import DetectionSet, Problem, Record, check_trainable

AT_ONCE = 256
"""Images that are queued for the threads together."""


def image_problems(data: DetectionSet) -> list[Problem]:
    """Decode every image, on all cores (OpenCV releases the GIL); return what is wrong."""
    found: list[Problem] = []
    with Progress(f"check {data.split}", len(data.records)) as bar:
        for problem in _checked(data.records):
            if problem is not None:
                found.append(problem)
            bar.advance()
    return found


def _checked(records: tuple[Record, ...]) -> Iterator[Problem | None]:
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        for start in range(0, len(records), AT_ONCE):
            yield from threads.map(_problem, records[start : start + AT_ONCE])


def _problem(record: Record) -> Problem | None:
    """Return what is wrong with an image file."""
    image = read_image(record.path)
    if image is None:
        return Problem(
            "image cannot be decoded", str(record.path), why_unread(record.path) or "remove it"
        )
    stated, real = (record.height, record.width), image.shape[:2]
    if stated == real:
        return None
    stored = read_image(record.path, turned=False)
    if stored is not None and stored.shape[:2] == stated:
        return Problem(
            "annotated on stored pixels",
            str(record.path),
            "EXIF turns the image: detect.py sees it turned, training does not; heat data convert "
            "turns the boxes",
        )
    return Problem(
        "size differs",
        str(record.path),
        f"stated {stated[1]}x{stated[0]}, is {real[1]}x{real[0]}: boxes are taken as shares of the "
        "stated size",
    )


def training_problems(data: DetectionSet) -> list[Problem]:
    """Return why training would refuse a set."""
    try:
        check_trainable(data)
    except DataError as error:
        return [Problem("cannot be trained on", data.split, str(error))]
    return []


def class_problems(train: DetectionSet, other: DetectionSet) -> list[Problem]:
    """Return how the classes of a split differ from those that are trained on."""
    if train.names == other.names:
        return []
    try:
        other.numbered_as(train.names)
    except DataError as error:
        return [Problem("classes differ from train", other.split, str(error))]
    detail = "listed in another order or number, matched by name"
    return [Problem("classes differ from train", other.split, detail)]
