"""Lets a teacher look at images, in a process of its own, and keeps what it finds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from supernet.progress import Progress

from .asked import Asked
from .detector import BATCH, Seen, Teacher, TeacherFacts, ToSee
from .seen_file import SeenFile, content_key
from .worker import Worker


@dataclass(frozen=True, slots=True)
class Looked:
    """The result, in the order of the images."""

    teacher: TeacherFacts
    seen: list[Seen | None]
    """None for files that cannot be decoded."""
    new: int
    """Images that were looked at now."""


def look(
    asked: Asked,
    images: Sequence[ToSee],
    file: Path,
    *,
    threads: int,
    option: str,
    replace: bool = False,
) -> Looked:
    """Return what a teacher finds on images; `file` keeps it for the next time.

    `option` tells what to give where the file holds another teacher's; with `replace`
    that is replaced.
    """
    with Worker(Teacher, asked, threads) as worker:
        facts: TeacherFacts = worker.ask("facts")
        with SeenFile(file, facts, option=option, replace=replace) as known:
            keys = [content_key(image.path) for image in images]
            found = [
                known.find(key, image.size_hw) if key is not None else None
                for key, image in zip(keys, images, strict=True)
            ]
            todo = [i for i, seen in enumerate(found) if seen is None and keys[i] is not None]
            if not todo:
                return Looked(facts, found, 0)
            with Progress("teacher", len(images), done=len(images) - len(todo)) as bar:
                batches = [todo[first : first + BATCH] for first in range(0, len(todo), BATCH)]
                answers = worker.stream("see", ([images[i] for i in batch] for batch in batches))
                for batch, answer in zip(batches, answers, strict=True):
                    for index, seen in zip(batch, answer, strict=True):
                        key = keys[index]
                        if seen is not None and key is not None:
                            stated = images[index].size_hw is not None
                            found[index] = known.add(key, seen, stated=stated)
                    bar.advance(steps=len(batch))
    return Looked(facts, found, sum(found[index] is not None for index in todo))
