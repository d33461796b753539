"""Images without labels: all of some folders, or the training images of detection sets."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

from ..errors import DataError
from .coco import is_detection_set, load_split
from .detection_set import evenly
from .image_files import list_images

FEWEST = 2
"""BatchNorm takes means over a batch."""


@dataclass(frozen=True)
class UnlabelledImages:
    """Image files, whether they can be decoded or not."""

    roots: tuple[Path, ...]
    paths: tuple[Path, ...]

    @cached_property
    def digest(self) -> str:
        """Hash of the files, by their path within their folder and their size."""
        found = hashlib.sha256()
        for name, path in zip(self.names, self.paths, strict=True):
            found.update(json.dumps([name, path.stat().st_size]).encode(errors="surrogateescape"))
        return found.hexdigest()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Path of each file within its folder, wherever that lies."""
        starts = [os.path.join(root.absolute(), "") for root in self.roots]  # noqa: PTH118
        names = []
        for path in self.paths:
            name = str(path.absolute())
            for start in starts:
                name = name.removeprefix(start)
            names.append(name)
        return tuple(names)

    def first(self, most: int) -> Self:
        """Return at most so many of the images, evenly spread over all."""
        return replace(self, paths=tuple(evenly(self.paths, most)))


def find_images(roots: Sequence[Path]) -> UnlabelledImages:
    """Find the images of folders, nested; of a detection set, those of its training split.

    Raises `DataError` where a folder has none, or all of them together fewer than two.
    """
    paths: dict[Path, None] = {}
    for root in roots:
        if not root.is_dir():
            raise DataError(f"--data {root}: no such folder")
        if is_detection_set(root):
            found = [record.path for record in load_split(root, "train").records]
        else:
            found = list_images(root)
        if not found:
            raise DataError(f"--data {root}: no image in it, nor in the folders below")
        paths |= dict.fromkeys(found)
    if len(paths) < FEWEST:
        raise DataError(f"--data: {len(paths)} image, at least {FEWEST} are needed")
    return UnlabelledImages(tuple(roots), tuple(paths))
