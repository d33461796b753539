"""Image files of a data set: which of a folder's files are images, and how large each one is."""

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..image_header import IMAGE_SUFFIXES

TURNED = (5, 6, 7, 8)
"""EXIF orientations in which height and width are swapped."""
MAX_PIXELS = 2**30
"""More are not decoded by OpenCV, so not read here either."""
ORIENTATION, TIFF_WIDTH, TIFF_HEIGHT = 0x0112, 256, 257

_heads = threading.Lock()


def list_images(folder: Path) -> list[Path]:
    """Return the images of a folder and of those below it, sorted.

    Hidden files and folders are left out: `.ipynb_checkpoints`, and the `._name.jpg` of a Mac.
    """
    found: list[str] = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            os.path.join(place, name)  # noqa: PTH118  (a Path for each is ten times slower)
            for name in files
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")  # noqa: PTH122
        ]
    return sorted(Path(name) for name in found)


class Inside:
    """Tells which files lie in a data folder, links followed.

    The folder itself and the folders and links directly in it may be links to any place: whoever
    laid the set out made them. What lies deeper may not lead out of these.
    """

    def __init__(self, root: Path) -> None:
        """Follow the links of the data folder and of its sub-folders."""
        places = [root, *(path for path in root.iterdir() if path.is_dir())]
        self._places = tuple({os.path.join(os.path.realpath(place), "") for place in places})  # noqa: PTH118
        self._folders: dict[str, str] = {}

    def has(self, file: str) -> bool:
        """Return whether a file lies in the data folder."""
        folder, name = os.path.split(file)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        real = os.path.join(self._folders[folder], name)  # noqa: PTH118
        if os.path.islink(real):  # noqa: PTH114
            real = os.path.realpath(real)
        return real.startswith(self._places)


def content_digest(paths: Iterable[Path]) -> str:
    """Return a hash of the contents of files, in order; one that cannot be read counts as empty."""
    found = hashlib.sha256()
    for path in paths:
        content = b""
        with suppress(OSError):
            content = path.read_bytes()
        found.update(hashlib.sha256(content).digest())
    return found.hexdigest()


class Oriented(NamedTuple):
    """Height and width of an image as it is stored, and its EXIF orientation, 1 to 8."""

    stored_hw: tuple[int, int]
    orientation: int


def image_size(path: Path) -> tuple[int, int] | None:
    """Return height and width after EXIF rotation, from the file's header; None if unreadable."""
    found = oriented_size(path)
    if found is None:
        return None
    return found.stored_hw[::-1] if found.orientation in TURNED else found.stored_hw


def oriented_size(path: Path) -> Oriented | None:
    """Return what a file's header says of its size and rotation; None if it is unreadable."""
    try:
        with _large_ones_too(), Image.open(path) as image:
            for packet in ("XML:com.adobe.xmp", "xmp"):  # nothing that decodes turns by these
                image.info.pop(packet, None)
            orientation = image.getexif().get(ORIENTATION, 1)
            width, height = image.size
            tags = getattr(image, "tag_v2", None)  # of a TIFF; Pillow turns its size itself or not
            if tags is not None:
                orientation = tags.get(ORIENTATION, 1)
                width, height = int(tags[TIFF_WIDTH]), int(tags[TIFF_HEIGHT])
    except Exception:  # a broken header raises anything, by format
        return None
    if not 0 < width * height <= MAX_PIXELS:
        return None
    return Oriented((height, width), orientation)


@contextmanager
def _large_ones_too() -> Iterator[None]:
    """Let Pillow read the header of an image that it would not decode; `MAX_PIXELS` limits it."""
    with _heads:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
