"""What a teacher found on images, kept in a file: a run that goes on does not look again.

The first line names the teacher, every other line has an image, by the hash of its content. Lines
are appended, so a killed run loses the last one at most.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NotRequired, Self, TypedDict

import numpy as np

from supernet.errors import UserError

from .detector import Seen, TeacherFacts

FORMAT_VERSION = 1
"""History: 1, the first."""


class Line(TypedDict):
    """An image; boxes in its pixels, x1, y1, x2, y2."""

    image: str
    stated: NotRequired[bool]
    """Whether its size was asked for: its pixels as they are stored, or turned by EXIF."""
    size_hw: Sequence[int]
    boxes: Sequence[Sequence[float]]
    scores: Sequence[float]
    labels: Sequence[int]


def content_key(path: Path) -> str | None:
    """Return a hash of an image file; None where it cannot be read."""
    with suppress(OSError), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]
    return None


class SeenFile:
    """The detections of one teacher by image, on disk and in memory."""

    def __init__(
        self, path: Path, teacher: TeacherFacts, *, option: str, replace: bool = False
    ) -> None:
        """Read what is there already.

        A file of another teacher, or that is none of HEAT's, is a `UserError` whose advice is
        `option`; with `replace` it is replaced.
        """
        self.path = path
        self._head = {
            "format": FORMAT_VERSION,
            "teacher": teacher.name,
            "digest": teacher.digest,
            "names": list(teacher.names),
        }
        self._lines: dict[tuple[str, tuple[int, ...] | None], Line] = {}
        """By content and the size that was asked for, None for none."""
        self._file: IO[str] | None = None
        if path.exists() and path.stat().st_size:
            try:
                self._read(option)
            except UserError:
                if not replace:
                    raise
                path.unlink()

    def _read(self, option: str) -> None:
        try:
            head, *rest = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = json.loads(head)
            same = kept == self._head
            name = kept["teacher"]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            raise UserError(f"{self.path} is no file of a teacher's detections: {option}") from None
        if not same:
            raise UserError(
                f"{self.path} holds what another teacher found ({name}, or with other options): "
                f"{option}"
            )
        for text in rest:
            # Cut off when a run was killed, or edited.
            with suppress(ValueError, KeyError, TypeError, OverflowError, RecursionError):
                line: Line = json.loads(text)
                seen_of(line)
                self._keep(line)

    def find(self, key: str, size_hw: tuple[int, int] | None = None) -> Seen | None:
        """Return what was found on an image, of this size where one is given."""
        line = self._lines.get((key, size_hw))
        if line is None and size_hw is not None:  # the size may be that of the image anyway
            line = self._lines.get((key, None))
        if line is None or (size_hw is not None and tuple(line["size_hw"]) != size_hw):
            return None
        return seen_of(line)

    def _keep(self, line: Line) -> None:
        size = tuple(line["size_hw"]) if line.get("stated") else None
        self._lines[line["image"], size] = line

    def add(self, key: str, seen: Seen, *, stated: bool = False) -> Seen:
        """Append what was found on an image, and return it as the file has it: rounded.

        It is `stated` whose size was asked for.
        """
        boxes, scores, labels = seen.found
        line: Line = {
            "image": key,
            "stated": stated,
            "size_hw": list(seen.image_hw),
            "boxes": [[round(float(side), 2) for side in box] for box in boxes],
            "scores": [round(float(score), 4) for score in scores],
            "labels": [int(label) for label in labels],
        }
        try:
            self._opened().write(json.dumps(line) + "\n")
            self._opened().flush()
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from None
        self._keep(line)
        return seen_of(line)

    def _opened(self) -> IO[str]:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = not self.path.exists() or not self.path.stat().st_size
            self._file = self.path.open("a", encoding="utf-8")
            if new:
                self._file.write(json.dumps(self._head) + "\n")
            elif not _ends_with_newline(self.path):
                self._file.write("\n")
        return self._file

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        """Return the file."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close it."""
        self.close()


def seen_of(line: Mapping[str, object] | Line) -> Seen:
    """Return the detections of a line.

    Raises `ValueError`, `KeyError`, `TypeError` or `OverflowError` where it has none.
    """
    boxes = np.array(line["boxes"], dtype=np.float32).reshape(-1, 4)
    scores = np.array(line["scores"], dtype=np.float32)
    labels = np.array(line["labels"], dtype=np.int64)
    height, width = np.array(line["size_hw"], dtype=np.int64).tolist()
    if not len(boxes) == len(scores) == len(labels):
        raise ValueError("as many boxes as scores and labels")
    return Seen((height, width), (boxes, scores, labels))


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
