"""Whose features of which images a cache holds, and how many images fit into it."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self, TypedDict

import numpy as np
import numpy.typing as npt

from ..data.image_files import image_size
from ..data.unlabelled import FEWEST, UnlabelledImages
from ..errors import DataError, UserError
from .distributed import first_process

Row = npt.NDArray[np.float16]
"""Features of one view, or of several along the first axis."""


class KeyRecord(TypedDict):
    """A `CacheKey` as JSON."""

    teacher: str
    digest: str
    input_hw: list[int]
    normalisation: str
    maps: list[list[str | int]]
    images: str
    num_images: int
    views: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheKey:
    """Whose features of what are in a cache."""

    teacher: str = field(compare=False)
    """Name."""
    digest: str
    """Hash of its weights."""
    input_hw: tuple[int, int]
    """Pixels of its input."""
    normalisation: str
    maps: tuple[tuple[str, int, int, int], ...]
    """Name, channels, height and width of each map."""
    images: str
    """Hash of the image files."""
    num_images: int
    views: int
    """Views of each image."""

    @property
    def bytes_an_image(self) -> int:
        """Size of all features of an image."""
        return self.views * sum(2 * c * h * w for _, c, h, w in self.maps)

    def record(self) -> KeyRecord:
        """Return the key as JSON values."""
        return {
            "teacher": self.teacher,
            "digest": self.digest,
            "input_hw": list(self.input_hw),
            "normalisation": self.normalisation,
            "maps": [list(one) for one in self.maps],
            "images": self.images,
            "num_images": self.num_images,
            "views": self.views,
        }

    @classmethod
    def read(cls, values: KeyRecord) -> Self:
        """Read a key; raise `KeyError`, `TypeError` or `ValueError` where the values are none."""
        height, width = values["input_hw"]
        maps = [(str(name), int(c), int(h), int(w)) for name, c, h, w in values["maps"]]
        return cls(
            teacher=values["teacher"],
            digest=values["digest"],
            input_hw=(height, width),
            normalisation=values["normalisation"],
            maps=tuple(maps),
            images=values["images"],
            num_images=values["num_images"],
            views=values["views"],
        )

    def check_finite(self, maps: Sequence[Row], files: Sequence[Path]) -> None:
        """Refuse maps [B, C, h, w] of files that are not finite."""
        for (name, *_), values in zip(self.maps, maps, strict=True):
            bad = ~np.isfinite(values).all(axis=(1, 2, 3))
            if bad.any():
                raise DataError(
                    f"{self.teacher} returns features ({name}) that are not finite, or beyond "
                    f"half precision, for {files[int(bad.argmax())]}: is it whole, and is its "
                    f"normalisation right ({self.normalisation})?"
                )

    def differences(self, other: "CacheKey") -> str:
        """Return in what another key differs."""
        found = [
            words
            for words, fields in (
                (f"another teacher ({other.teacher})", ("digest",)),
                ("other features of it", ("maps",)),
                ("another --teacher-size", ("input_hw",)),
                ("another normalisation", ("normalisation",)),
                ("other images", ("images", "num_images")),
                ("another number of --views", ("views",)),
            )
            if any(getattr(self, field) != getattr(other, field) for field in fields)
        ]
        return ", ".join(found)


def within(
    images: UnlabelledImages, key: CacheKey, cache_gb: float
) -> tuple[UnlabelledImages, UnlabelledImages | None]:
    """Return the images whose features fit into so many GB, and the others; report how many.

    Of the others those are left out whose header cannot be read.
    """
    most = int(cache_gb * 1e9 // key.bytes_an_image)
    if most < FEWEST:
        raise UserError(
            f"--cache-gb {cache_gb}: the features of an image take {key.bytes_an_image / 1e6:.1f} "
            f"MB, so {most} fit"
        )
    chosen = images.first(most)
    kept = frozenset(chosen.paths)
    more = [path for path in images.paths if path not in kept]
    others = tuple(path for path in more if image_size(path) is not None)
    if more and first_process():
        needed = len(images.paths) * key.bytes_an_image / 1e9
        broken = f"; {len(more) - len(others)} cannot be decoded" if len(others) < len(more) else ""
        print(
            f"warning: the features of all {len(images.paths)} images take {needed:.3g} GB: those "
            f"of {len(chosen.paths)} fit into --cache-gb {cache_gb:g} and are kept, those of "
            f"{len(others)} are computed anew in every epoch{broken}",
            file=sys.stderr,
        )
    return chosen, replace(images, paths=others) if others else None


def keyed(key: CacheKey, images: UnlabelledImages) -> CacheKey:
    """Return the key for some images."""
    return replace(key, images=images.digest, num_images=len(images.paths))
