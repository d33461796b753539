"""Finds the image that an annotation names, among those of a folder.

Exports name images by paths of other machines, by URLs, with or without folders and suffixes. A
name never leads out of the folder: what is absolute in it, or goes upwards, is dropped.
"""

import os
import re
from collections import defaultdict
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from .image_files import list_images

UPLOADED = re.compile(r"[0-9a-f]{8}-")
"""What Label Studio puts before the name of an uploaded file."""


class ImageSearch:
    """The images of a folder by the names that annotations give them."""

    def __init__(self, folder: Path) -> None:
        """Take the folder; it is listed when the first image is not where its name says."""
        self.folder = folder

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        found = defaultdict(list)
        for path in list_images(self.folder):
            for key in {path.name.lower(), path.stem.lower()}:
                found[key].append(path)
        return dict(found)

    def find(self, stated: str) -> Path | None:
        """Return the image of a name; None where there is none, or where different ones fit."""
        parts = parts_of(stated)
        if not parts:
            return None
        whole = self.folder.joinpath(*parts)
        if os.path.isfile(whole):  # noqa: PTH113  (a Path refuses names that are too long)
            return whole
        # The ends of the path below the folder itself, where nothing deeper agrees better.
        near = {self.folder.joinpath(*parts[start:]) for start in range(1, len(parts))}
        name = parts[-1].lower()
        names = (name, unquote(name), UPLOADED.sub("", unquote(name), count=1))
        for key in dict.fromkeys((*names, *(PurePosixPath(each).stem for each in names))):
            paths = self._by_name.get(key, [])
            agreement = [(_shared_end(path.parts[:-1], parts[:-1]), path in near) for path in paths]
            best = [p for p, share in zip(paths, agreement, strict=True) if share == max(agreement)]
            if best and all(os.path.samefile(best[0], path) for path in best[1:]):  # noqa: PTH121
                return best[0]
        return None


def parts_of(stated: str) -> tuple[str, ...]:
    """Return folders and name of a path or URL, without what is absolute or goes upwards."""
    url = urlsplit(stated) if "://" in stated or "?d=" in stated else None
    if url is not None:
        local = parse_qs(url.query).get("d")
        stated = local[0] if local else unquote(url.path)
    parts = PurePosixPath(stated.replace("\\", "/")).parts
    return tuple(p for p in parts if p not in ("/", "//", "..") and not p.endswith(":"))


def _shared_end(ours: tuple[str, ...], theirs: tuple[str, ...]) -> int:
    """Return how many folders agree, counted from the last."""
    count = 0
    for mine, other in zip(reversed(ours), reversed(theirs), strict=False):
        if mine.lower() != other.lower():
            break
        count += 1
    return count
