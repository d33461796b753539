"""What readers of labelling tools' exports return, and what writers of sets take."""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError
from .annotations import Complain, number
from .coco_file import CocoAnnotation, CocoCategory, CocoImage, RawCoco
from .detection_set import Record
from .image_files import image_size
from .image_search import ImageSearch

SPLITS = ("train", "val", "test")
ALSO_NAMED = {"valid": "val", "validation": "val", "training": "train", "testing": "test"}


def split_name(stated: str) -> str:
    """Return `train`, `val` or `test` for the names that tools give them, others as they are."""
    plain = re.sub(r"[-_ ]?\d+$", "", stated.strip().lower())
    plain = ALSO_NAMED.get(plain, plain)
    return plain if plain in SPLITS else stated.strip()


@dataclass(frozen=True, slots=True)
class Item:
    """An image of a set that is written: its name there, with folders, and its objects."""

    name: str
    record: Record


@dataclass(frozen=True, slots=True)
class Written:
    """A set that is to be written."""

    names: Sequence[str]
    category_ids: Sequence[int]
    splits: Mapping[str, Sequence[Item]]


@dataclass(slots=True)
class Collected:
    """Images and boxes of an export as they are read, split by split."""

    search: ImageSearch
    complain: Complain
    names: list[str] = field(default_factory=list)
    """Classes, in the order in which they are declared, else met."""
    images: dict[str, list[CocoImage]] = field(default_factory=dict)
    annotations: dict[str, list[CocoAnnotation]] = field(default_factory=dict)
    without_box: dict[str, int] = field(default_factory=dict)
    """Number of objects that have no box, by kind."""
    _sizes: dict[int, tuple[int, int]] = field(default_factory=dict)

    def image(
        self, stated: str, split: str, size_wh: tuple[object, object] | None, where: str
    ) -> int | None:
        """Add an image and return its id; None, and a report, where it is not found."""
        path = self.search.find(stated)
        if path is None:
            self.complain(
                "missing image", where, f"no {stated}, or several, in {self.search.folder}, skipped"
            )
            return None
        size = _size(size_wh) or image_size(path)
        if size is None:
            self.complain("unreadable image", str(path), "skipped")
            return None
        height, width = size
        image_id = len(self._sizes) + 1
        self._sizes[image_id] = size
        image: CocoImage = {
            "id": image_id, "file_name": str(path.absolute()), "width": width, "height": height
        }  # fmt: skip
        self.images.setdefault(split, []).append(image)
        self.annotations.setdefault(split, [])
        return image_id

    def size(self, image_id: int) -> tuple[int, int]:
        """Return height and width of an image that was added."""
        return self._sizes[image_id]

    def box(self, image_id: int, split: str, name: str, corners: Iterable[object]) -> None:
        """Add an object by its class and its corners, pixels; raise `ValueError` for no numbers."""
        x0, y0, x1, y1 = (number(side) for side in corners)
        if not all(map(math.isfinite, (x0, y0, x1, y1))) or not name.strip():
            raise ValueError(name)
        if name not in self.names:
            self.names.append(name)
        self.annotations[split].append(
            {
                "image_id": image_id,
                "category_id": self.names.index(name) + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
            }
        )

    def no_box(self, kind: str) -> None:
        """Count an object that has no box."""
        self.without_box[kind] = self.without_box.get(kind, 0) + 1

    def finish(self, source: Path, *, by_name: bool = False) -> dict[str, RawCoco]:
        """Return the lists of each split, classes as declared or in the order of their names.

        Raises `DataError` where nothing is to be converted.
        """
        for kind, count in sorted(self.without_box.items()):
            self.complain("no box", source.name, f"{count} of kind {kind}, skipped")
        if not self.images:
            raise DataError(
                f"{source}: none of its images was found in {self.search.folder}: give their "
                "folder by --images"
            )
        if not self.names:
            raise DataError(f"{source}: no class and no box in its {len(self._sizes)} images")
        names = list(enumerate(self.names, 1))
        if by_name:
            names.sort(key=lambda pair: pair[1])
        place = {old: new for new, (old, _) in enumerate(names, 1)}
        for item in (item for items in self.annotations.values() for item in items):
            item["category_id"] = place[item["category_id"]]
        categories: list[CocoCategory] = [{"id": place[old], "name": name} for old, name in names]
        return {
            split: RawCoco(images, self.annotations[split], categories)
            for split, images in self.images.items()
        }


def _size(stated_wh: tuple[object, object] | None) -> tuple[int, int] | None:
    try:
        width, height = (int(number(side)) for side in stated_wh or ())
    except (ValueError, OverflowError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def around(points: Sequence[tuple[float, float]]) -> tuple[float, float, float, float]:
    """Return the box around points; raise `ValueError` where there are none."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def turned(
    corners: tuple[float, float, float, float], degrees: float, pivot: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Return the box around a rectangle that is turned clockwise, as images show it."""
    x0, y0, x1, y1 = corners
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    px, py = pivot
    return around(
        [
            (px + (x - px) * cosine - (y - py) * sine, py + (x - px) * sine + (y - py) * cosine)
            for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
        ]
    )


def read_xml(path: Path) -> ET.Element:
    """Return the root of an XML file; raise `DataError` where it is none."""
    try:
        return ET.parse(path).getroot()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (ET.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path} is not valid XML: {error}") from None
