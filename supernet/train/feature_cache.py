"""A teacher's features of images on disk: computed once, read by memory mapping.

features/
  cache.json     whose features they are, of which images, and whether all are there
  map-0.f16 ...  half-precision values [images * views, C, h, w] of each of the teacher's maps
  broken.txt     images that cannot be decoded, one a line; their rows mean nothing

Files grow row by row, so an interrupted computation goes on where it was.
"""

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol, Self, TypedDict

import numpy as np
import numpy.typing as npt

from ..atomic import append_line, write_text
from ..data.unlabelled import FEWEST, UnlabelledImages
from ..errors import DataError, UserError, wrong_format
from ..letterbox import PAD_RGB, Image
from ..progress import Progress
from .feature_key import CacheKey, KeyRecord, Row

FORMAT_VERSION = 1
"""History of `cache.json`: 1, the first."""
BATCH = 8
"""Views that the teacher is given together."""
SMALLEST_STD = 1e-6
FOR_SCALE = 1024
"""Rows from which means and deviations of channels are taken, at most."""
CHUNK = 32
"""Rows of them that are in memory together."""
Images = npt.NDArray[np.uint8]
"""RGB images of one size, [B, H, W, 3]."""


class Teacher(Protocol):
    """What computes features: see `deploy.teachers`."""

    def stream(self, images: Iterable[Images]) -> Iterator[Sequence[Row]]:
        """Yield the maps [B, C, h, w] of each batch."""


class CacheRecord(TypedDict):
    """`cache.json`."""

    format: int
    complete: bool
    key: KeyRecord
    scales: list[tuple[list[float], list[float]]]
    """Mean and deviation by channel, of each map."""


class Scale(NamedTuple):
    """Mean and deviation of each channel of a map."""

    mean_C: npt.NDArray[np.float32]
    std_C: npt.NDArray[np.float32]


class FeatureCache:
    """The features of some images, in a folder."""

    def __init__(self, folder: Path, key: CacheKey, images: UnlabelledImages) -> None:
        """Name the files; nothing is read or written yet."""
        self.folder, self.key, self.images = folder, key, images

    @property
    def rows(self) -> int:
        """Views of all images."""
        return self.key.num_images * self.key.views

    @property
    def complete(self) -> bool:
        """Whether all features are there."""
        found = self._read()
        ours = found is not None and found.complete and found.key == self.key
        return ours and self.present() == self.rows

    @cached_property
    def broken(self) -> frozenset[str]:
        """Images that cannot be decoded, by name; older files have their whole paths."""
        try:
            path = self.folder / "broken.txt"
            text = path.read_text(encoding="utf-8", errors="surrogateescape")
        except FileNotFoundError:
            return frozenset()
        return frozenset(filter(None, text.split("\n")))

    @cached_property
    def usable(self) -> tuple[int, ...]:
        """Indices of the images that can be decoded."""
        images = zip(self.images.names, map(str, self.images.paths), strict=True)
        return tuple(i for i, known in enumerate(images) if not self.broken.intersection(known))

    @cached_property
    def scales(self) -> tuple[Scale, ...]:
        """Mean and deviation of each channel of each map."""
        found = self._read()
        assert found is not None
        return found.scales

    def row(self, index: int, view: int) -> list[Row]:
        """Return a copy of the maps [C, h, w] of a view of an image."""
        row = index * self.key.views + view
        return [np.array(self._map(number)[row]) for number in range(len(self.key.maps))]

    def check(self, *, restart: bool) -> Self:
        """Refuse, or with `restart` remove, features of another teacher or of other images."""
        found = self._read()
        if found is not None and found.key != self.key:
            if not restart:
                raise UserError(
                    f"{self.folder} holds features of something else "
                    f"({self.key.differences(found.key)}): --restart replaces them, another --out "
                    "keeps them"
                )
            shutil.rmtree(self.folder)
        return self

    def fill(self, teacher: Teacher, views: Iterable[tuple[Path, Image | None]]) -> None:
        """Compute what is missing.

        `views` yields file and pixels, None where they cannot be decoded, of each row from
        `self.present()` on.
        """
        if self.complete:
            return
        present = self.present()
        missing = (self.rows - present) * self.key.bytes_an_image // self.key.views
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if missing > free:
            raise UserError(
                f"{self.folder}: the features need {missing / 1e9:.1f} GB, {free / 1e9:.1f} GB are "
                "free; a smaller --cache-gb keeps fewer"
            )
        self._write(complete=False)
        names = dict(zip(self.images.paths, self.images.names, strict=True))
        batches = _Batches(views, names, self.key.input_hw, self.folder / "broken.txt")
        try:
            with ExitStack() as stack, Progress("teacher", self.rows, done=present) as bar:
                files = [stack.enter_context(p.open("r+b")) for p in self._cut(present)]
                for file in files:
                    file.seek(0, os.SEEK_END)
                for maps in teacher.stream(batches):
                    self.key.check_finite(maps, batches.names.pop(0))
                    for file, values in zip(files, maps, strict=True):
                        file.write(np.ascontiguousarray(values).data)
                    bar.advance(steps=len(maps[0]))
                for file in files:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"cannot write {self.folder}: {error.strerror or error}; {self.present()} of "
                f"{self.rows} features are kept, the same command goes on"
            ) from None
        self.__dict__.pop("broken", None)
        self.__dict__.pop("usable", None)
        if len(self.usable) < FEWEST:
            raise DataError(
                f"{len(self.broken)} of {len(self.images.paths)} images cannot be decoded "
                f"({self.folder / 'broken.txt'}): at least {FEWEST} are needed"
            )
        self._write(complete=True)

    def present(self) -> int:
        """Return how many rows are in the files."""
        sizes = []
        for path, (_, c, h, w) in zip(self._files(), self.key.maps, strict=True):
            sizes.append(path.stat().st_size // (2 * c * h * w) if path.exists() else 0)
        return min(self.rows, *sizes)

    def _files(self) -> list[Path]:
        return [self.folder / f"map-{number}.f16" for number in range(len(self.key.maps))]

    def _cut(self, rows: int) -> list[Path]:
        """Cut the files to whole rows, as many in each."""
        for path, (_, c, h, w) in zip(self._files(), self.key.maps, strict=True):
            with path.open("ab") as file:
                file.truncate(rows * 2 * c * h * w)
        return self._files()

    def _map(self, number: int) -> npt.NDArray[np.float16]:
        _, c, h, w = self.key.maps[number]
        path = self._files()[number]
        return _opened(path, (self.rows, c, h, w), path.stat().st_ino)

    def _read(self) -> "_Contents | None":
        path = self.folder / "cache.json"
        try:
            record: CacheRecord = json.loads(path.read_text(encoding="utf-8"))
            if record["format"] != FORMAT_VERSION:
                again = f"delete {self.folder}, it is computed again"
                raise UserError(wrong_format(path, record["format"], [FORMAT_VERSION], again))
            key, complete = CacheKey.read(record["key"]), record["complete"]
            scales = [Scale(*(np.array(p, np.float32) for p in one)) for one in record["scales"]]
            shapes = [part.shape for scale in scales for part in scale]
            if shapes != [(c,) for _, c, _, _ in key.maps for _ in Scale._fields] * bool(complete):
                raise ValueError(f"means and deviations of shapes {shapes[:4]}")
            return _Contents(key, complete, tuple(scales))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            raise UserError(
                f"{path} cannot be read ({error}): delete {self.folder}, it is computed again"
            ) from None

    def _write(self, *, complete: bool) -> None:
        scales = [self._scale(number) for number in range(len(self.key.maps) * complete)]
        record: CacheRecord = {
            "format": FORMAT_VERSION,
            "complete": complete,
            "key": self.key.record(),
            "scales": [(one.mean_C.tolist(), one.std_C.tolist()) for one in scales],
        }
        write_text(self.folder / "cache.json", json.dumps(record) + "\n")

    def _scale(self, number: int) -> Scale:
        """Return mean and deviation of each channel of a map, over some rows."""
        usable, views = self.usable, self.key.views
        images = usable[:: max(1, math.ceil(len(usable) * views / FOR_SCALE))]
        rows = np.array([image * views + view for image in images for view in range(views)])
        stored = self._map(number)
        chunks = [rows[at : at + CHUNK] for at in range(0, len(rows), CHUNK)]
        means = [stored[chunk].mean(axis=(2, 3), dtype=np.float64) for chunk in chunks]
        mean_C = np.concatenate(means).mean(axis=0)
        squares = [
            np.square(stored[chunk] - mean_C[:, None, None]).mean(axis=(2, 3)) for chunk in chunks
        ]
        std_C = np.sqrt(np.concatenate(squares).mean(axis=0))
        std_C = np.maximum(std_C, SMALLEST_STD)
        return Scale(mean_C.astype(np.float32), std_C.astype(np.float32))


class _Contents(NamedTuple):
    """What `cache.json` says."""

    key: CacheKey
    complete: bool
    scales: tuple[Scale, ...]
    """Empty while the features are not complete."""


class _Batches:
    """Batches of views; the files of those that are with the teacher are in `names`."""

    def __init__(
        self,
        views: Iterable[tuple[Path, Image | None]],
        known_as: Mapping[Path, str],
        input_hw: tuple[int, int],
        broken: Path,
    ) -> None:
        self.views, self.input_hw, self.broken = views, input_hw, broken
        self.known_as = known_as
        self.names: list[list[Path]] = []

    def __iter__(self) -> Iterator[Images]:
        names: list[Path] = []
        pixels: list[Image] = []
        for path, image in self.views:
            if image is None:
                append_line(self.broken, self.known_as[path])
                image = np.full((*self.input_hw, 3), PAD_RGB, dtype=np.uint8)
            names.append(path)
            pixels.append(image)
            if len(names) == BATCH:
                self.names.append(names)
                yield np.stack(pixels)
                names, pixels = [], []
        if names:
            self.names.append(names)
            yield np.stack(pixels)


@lru_cache(maxsize=16)
def _opened(path: Path, shape: tuple[int, ...], inode: int) -> npt.NDArray[np.float16]:
    """Return a file's values, mapped once a process; `inode` changes where it is replaced."""
    return np.memmap(path, dtype=np.float16, mode="r", shape=shape)
