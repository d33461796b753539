"""The folder that `heat label` writes: the images, annotations, and what it wrote itself.

OUT/
  train                             a link to the folder of images
  annotations/instances_train.json  COCO
  uncertain.csv                     for a person
  teacher.jsonl                     what the teacher found, to go on from
  label.json                        hashes of what was written: a file that was changed is kept
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from supernet.atomic import check_target, write_bytes, write_text
from supernet.errors import UserError


@dataclass(frozen=True, slots=True)
class LabelFolder:
    """Where labels are written; nothing is replaced that was not written here before."""

    root: Path

    @property
    def annotations(self) -> Path:
        """The COCO file."""
        return self.root / "annotations" / "instances_train.json"

    @property
    def uncertain(self) -> Path:
        """The list for a person."""
        return self.root / "uncertain.csv"

    @property
    def seen(self) -> Path:
        """What the teacher found."""
        return self.root / "teacher.jsonl"

    @property
    def _record(self) -> Path:
        return self.root / "label.json"

    def check(self, images: Path) -> None:
        """Refuse a folder among the images or of others, and files that somebody else wrote."""
        theirs_at = os.path.realpath(images)
        own, theirs = Path(os.path.realpath(self.root)), Path(theirs_at)
        if own == theirs or theirs in own.parents:
            raise UserError(f"--out {self.root} is within the images: give a folder beside them")
        written = self._written()
        for path in (self.annotations, self.uncertain):
            check_target(path)
            if path.exists() and _hash(path) not in written.get(path.name, []):
                raise UserError(
                    f"{path} is there already, and not as heat label wrote it: it is kept, give "
                    "another --out"
                )
        link = self.root / "train"
        there = link.is_symlink() or link.exists()
        if there and os.path.realpath(link) != theirs_at:
            raise UserError(f"{link} is there already, not {images}: give another --out")

    def link(self, images: Path) -> None:
        """Let `train` be the folder of images, which was checked."""
        link = self.root / "train"
        if link.is_symlink() or link.exists():
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            link.symlink_to(images.absolute(), target_is_directory=True)
        except OSError as error:
            raise UserError(f"cannot link {link} to {images}: {error.strerror}") from None

    def write(self, annotations: str, uncertain: str) -> None:
        """Write the labels; their hashes first, so that an interrupted run may replace them."""
        # Names of images may be no UTF-8: they keep their bytes.
        contents = {
            self.annotations: annotations.encode(errors="surrogateescape"),
            self.uncertain: uncertain.encode(errors="surrogateescape"),
        }
        before = self._written()
        hashes = {
            path.name: [*before.get(path.name, [])[-1:], hashlib.sha256(content).hexdigest()]
            for path, content in contents.items()
        }
        write_text(self._record, json.dumps(hashes) + "\n")
        for path, content in contents.items():
            write_bytes(path, content)

    def _written(self) -> Mapping[str, list[str]]:
        """Return the hashes that the files may have: of the last text and of the one before."""
        try:
            found = json.loads(self._record.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        whole = isinstance(found, dict) and all(isinstance(v, list) for v in found.values())
        return found if whole else {}


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
