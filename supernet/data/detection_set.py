"""A detection set in memory: one split's images, their boxes, and everything found wrong."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import DataError, did_you_mean
from .coco_file import CocoAnnotation, CocoFile, to_bbox

Boxes = npt.NDArray[np.float32]
Item = TypeVar("Item")


class Crowd(NamedTuple):
    """A region that holds many objects of a class: none in training, and not against AP."""

    box_xyxy: tuple[float, ...]
    label: int
    area_px: float


@dataclass(frozen=True, slots=True)
class Record:
    """One image and its usable boxes."""

    image_id: int
    path: Path
    height: int
    width: int
    boxes_xyxy: Boxes
    """Corners in pixels of the stored image, clipped to it, [N, 4]."""
    labels: npt.NDArray[np.int64]
    """Class indices, 0-based and without gaps, [N]."""
    areas_px: npt.NDArray[np.float64] | None = None
    """Areas that decide what is small, medium or large, [N]; None for those of the boxes."""
    crowds: tuple[Crowd, ...] = ()
    weights: npt.NDArray[np.float32] | None = None
    """How much each box counts in training, [N], from 0 to 1; None for 1 each."""

    @property
    def object_areas_px(self) -> npt.NDArray[np.float64]:
        """The areas that decide what is small, medium or large, [N]: stated, or the boxes'."""
        if self.areas_px is not None:
            return self.areas_px
        boxes_N4 = self.boxes_xyxy.astype(np.float64)
        areas_N: npt.NDArray[np.float64] = (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(axis=1)
        return areas_N


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in the data, and what HEAT does about it."""

    kind: str
    where: str
    detail: str


@dataclass(frozen=True, slots=True)
class DetectionSet:
    """One split: records, class names and everything found wrong."""

    root: Path
    split: str
    annotation_path: Path
    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    """COCO category id of each class index."""
    records: tuple[Record, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.names)

    @property
    def num_boxes(self) -> int:
        """Boxes to train on."""
        return sum(len(record.labels) for record in self.records)

    @property
    def num_crowd(self) -> int:
        """Crowd regions."""
        return sum(len(record.crowds) for record in self.records)

    @property
    def ground_truth(self) -> CocoFile:
        """Images and annotations as a COCO file, annotations numbered anew from 1."""
        annotations: list[CocoAnnotation] = []
        for record in self.records:
            for box, label, area, crowd in _objects(record):
                annotations.append(
                    {
                        "id": len(annotations) + 1,  # the scorers take id 0 for no match
                        "image_id": record.image_id,
                        "category_id": self.category_ids[label],
                        "bbox": to_bbox(box),
                        "area": area,
                        "iscrowd": int(crowd),
                    }
                )
        return {
            "info": {},
            "images": [
                {"id": r.image_id, "file_name": r.path.name, "width": r.width, "height": r.height}
                for r in self.records
            ],
            "annotations": annotations,
            "categories": [
                {"id": id, "name": name}
                for id, name in zip(self.category_ids, self.names, strict=True)
            ],
        }

    @property
    def digest(self) -> str:
        """Hash of the image list and of all annotations.

        Files enter by their path within the set and their size in bytes, so a set may be moved.
        """
        found = hashlib.sha256(json.dumps([self.split, self.names, self.category_ids]).encode())
        start = os.path.join(self.root.absolute(), "")  # noqa: PTH118
        for record in self.records:
            path = str(record.path.absolute())
            inside = path.removeprefix(start)
            name = inside if inside != path else os.path.relpath(path, start)
            size = os.path.getsize(path) if os.path.exists(path) else -1  # noqa: PTH110, PTH202
            facts = [name, size, record.height, record.width, record.crowds]
            found.update(json.dumps(facts).encode(errors="surrogateescape"))
            found.update(np.ascontiguousarray(record.boxes_xyxy).tobytes())
            found.update(np.ascontiguousarray(record.labels).tobytes())
            if record.areas_px is not None:
                found.update(np.ascontiguousarray(record.areas_px).tobytes())
            if record.weights is not None:
                found.update(np.ascontiguousarray(record.weights).tobytes())
        return found.hexdigest()

    def of(self, records: Sequence[Record]) -> Self:
        """Return the set of some of its records."""
        return replace(self, records=tuple(records))

    def numbered_as(self, names: Sequence[str]) -> Self:
        """Return the set with its classes numbered as a model's, matched by name.

        Raises `DataError` where objects have a class that the model has not, and where two classes
        of one name leave it open which is meant.
        """
        names = tuple(names)
        if names == self.names:
            return self
        if len(set(names)) < len(names) or len(set(self.names)) < len(self.names):
            raise DataError(
                f"{self.annotation_path}: its classes are not the model's, and two classes have "
                f"one name, so they cannot be matched: {', '.join(self.names[:8])}"
            )
        place = {name: index for index, name in enumerate(names)}
        counts = np.zeros(self.num_classes, dtype=np.int64)
        for record in self.records:
            np.add.at(counts, [*record.labels, *(crowd.label for crowd in record.crowds)], 1)
        strange = [
            f"{name} ({count} boxes){did_you_mean(name, names)}"
            for name, count in zip(self.names, counts, strict=True)
            if count and name not in place
        ]
        if strange:
            raise DataError(
                f"{self.annotation_path} has classes that the model was not trained for: "
                f"{', '.join(strange[:5])}; it knows {', '.join(names[:8])}"
                f"{' ...' if len(names) > 8 else ''}"
            )
        new = np.array([place.get(name, 0) for name in self.names], dtype=np.int64)
        own = dict(zip(self.names, self.category_ids, strict=True))
        free = iter(range(max(self.category_ids) + 1, max(self.category_ids) + 1 + len(names)))
        ids = tuple(own[name] if name in own else next(free) for name in names)
        records = tuple(
            replace(
                record,
                labels=new[record.labels],
                crowds=tuple(c._replace(label=int(new[c.label])) for c in record.crowds),
            )
            for record in self.records
        )
        return replace(self, names=names, category_ids=ids, records=records)


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most so many items, evenly spread: sets are often sorted by class or by video."""
    if len(items) <= most:
        return list(items)
    return [items[index * len(items) // most] for index in range(most)]


def check_trainable(data: DetectionSet) -> None:
    """Refuse a training set without a box, or with a single image."""
    if not data.num_boxes:
        crowds = f", {data.num_crowd} crowd regions" if data.num_crowd else ""
        raise DataError(
            f"{data.annotation_path}: no box to train on in the {len(data.records)} images of "
            f"{data.split}{crowds} (heat data check {data.root})"
        )
    if len(data.records) < 2:
        raise DataError(
            f"{data.annotation_path}: {len(data.records)} image to train on, at least 2 are needed "
            "(BatchNorm takes means over a batch)"
        )


def _objects(record: Record) -> list[tuple[Iterable[float], int, float, bool]]:
    """Return box, label, area and whether it is a crowd, of everything in an image."""
    areas = map(float, record.object_areas_px)
    plain = zip(record.boxes_xyxy, map(int, record.labels), areas, strict=True)
    found = [(box, label, area, False) for box, label, area in plain]
    return [*found, *((c.box_xyxy, c.label, c.area_px, True) for c in record.crowds)]
