"""Reads detection sets in COCO format: `annotations/instances_<split>.json` beside `<split>/`.

The official naming (`train2017`) is understood too, and sets in YOLO format (`supernet.yolo`).
Nothing is skipped silently: every problem is kept with the place where it stands, for `heat data
check` and for the log of each run.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from .errors import DataError
from .yolo import read_yolo, yolo_file, yolo_splits

Boxes = npt.NDArray[np.float32]

MIN_BOXES_TO_JUDGE = 8
"""Fewer boxes say nothing about their convention."""


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
    num_crowd: int = 0
    ground_truth: dict[str, Any] = field(default_factory=dict, repr=False)
    """The annotation file without degenerate boxes, as pycocotools reads it."""

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.names)

    def of(self, records: Sequence[Record]) -> Self:
        """Return the set of some of its records, its ground truth cut to them too."""
        kept = {record.image_id for record in records}
        truth = {
            **self.ground_truth,
            "images": [i for i in self.ground_truth.get("images", ()) if i["id"] in kept],
            "annotations": [
                a for a in self.ground_truth.get("annotations", ()) if a["image_id"] in kept
            ],
        }
        return replace(self, records=tuple(records), ground_truth=truth)


def splits_of(root: Path) -> tuple[str, ...]:
    """Return the splits that have an annotation file."""
    if not root.is_dir():
        raise DataError(f"no data folder at {root}: give --data DIR (make one: heat data shapes)")
    yolo = yolo_file(root)
    if yolo is not None:
        return yolo_splits(yolo)
    stems = sorted((root / "annotations").glob("instances_*.json"))
    if not stems:
        raise DataError(
            f"{root} has no annotations/instances_<split>.json (COCO format) and no data.yaml "
            "(YOLO format): one of them is needed"
        )
    return tuple(path.stem.removeprefix("instances_") for path in stems)


def resolve_split(root: Path, split: str) -> str:
    """Return the split as named on disk: `train` also finds `train2017`."""
    available = splits_of(root)
    for name in available:
        if name == split or (name.startswith(split) and name[len(split) :].isdigit()):
            return name
    raise DataError(f"{root} has no split {split!r}: it has {', '.join(available)}")


def load_split(root: Path, split: str) -> DetectionSet:
    """Read one split; raise `DataError` for files that cannot be used at all."""
    name = resolve_split(root, split)
    problems: list[Problem] = []
    yolo = yolo_file(root)
    if yolo is not None:
        path = yolo
        raw = read_yolo(yolo, name, lambda *facts: problems.append(Problem(*facts)))
    else:
        path = root / "annotations" / f"instances_{name}.json"
        raw = _read_json(path)
    _refuse_corners(raw, path)
    categories = sorted(raw["categories"], key=lambda category: int(category["id"]))
    ids = tuple(int(category["id"]) for category in categories)
    if len(set(ids)) != len(ids) or not ids:
        raise DataError(f"{path}: categories must be there and have distinct ids, found {ids}")
    by_image, usable, crowd = _boxes_by_image(raw, set(ids), path, problems)
    records = []
    for image in raw["images"]:
        record = _record(image, root / name, by_image, ids, problems)
        if record is not None:
            records.append(record)
    if not records:
        raise DataError(f"{path}: none of its {len(raw['images'])} images is in {root / name}")
    present = {record.image_id for record in records}
    truth = {
        "info": raw.get("info", {}),
        "images": [image for image in raw["images"] if int(image["id"]) in present],
        "annotations": [box for box in usable if int(box["image_id"]) in present],
        "categories": categories,
    }
    names = tuple(str(category["name"]) for category in categories)
    return DetectionSet(root, name, path, names, ids, tuple(records), tuple(problems), crowd, truth)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from None
    missing = [
        key
        for key in ("images", "annotations", "categories")
        if not isinstance(raw, dict) or not isinstance(raw.get(key), list)
    ]
    if missing:
        raise DataError(f"{path} is not COCO instances format: no list {', '.join(missing)}")
    for key, needed in (
        ("images", ("id", "file_name", "width", "height")),
        ("categories", ("id", "name")),
    ):
        for index, item in enumerate(raw[key]):
            if not isinstance(item, dict) or any(name not in item for name in needed):
                raise DataError(f"{path}: {key}[{index}] lacks one of {', '.join(needed)}")
    return raw  # type: ignore[no-any-return]


def _refuse_corners(raw: dict[str, Any], path: Path) -> None:
    """Refuse boxes that are corners (x1, y1, x2, y2) where COCO needs (x, y, width, height).

    Read as widths, most of them would leave their pictures; read as corners, none does.
    """
    sizes = {image["id"]: (image["width"], image["height"]) for image in raw["images"]}
    outside = total = 0
    for item in raw["annotations"]:
        try:
            x, y, w, h = (float(value) for value in item["bbox"])
            width, height = sizes[item["image_id"]]
        except (KeyError, TypeError, ValueError):
            continue
        if not (x < w <= width + 1 and y < h <= height + 1):
            return
        total += 1
        outside += x + w > width + 1 or y + h > height + 1
    if total >= MIN_BOXES_TO_JUDGE and outside > total / 4:
        raise DataError(
            f"{path}: boxes look like corners (x1, y1, x2, y2), {outside} of {total} would leave "
            "their pictures; COCO's bbox is (x, y, width, height)"
        )


def _boxes_by_image(
    raw: dict[str, Any], category_ids: set[int], path: Path, problems: list[Problem]
) -> tuple[dict[int, list[tuple[list[float], int]]], list[dict[str, Any]], int]:
    """Return usable (xyxy, category) by image, the annotations kept for evaluation, crowds."""
    image_ids = [int(image["id"]) for image in raw["images"]]
    if len(set(image_ids)) != len(image_ids):
        raise DataError(f"{path}: image ids are not distinct")
    by_image: dict[int, list[tuple[list[float], int]]] = {key: [] for key in image_ids}
    usable: list[dict[str, Any]] = []
    crowd = 0
    for index, item in enumerate(raw["annotations"]):
        where = f"{path.name} annotations[{index}]"
        try:
            image_id, category = int(item["image_id"]), int(item["category_id"])
            x, y, w, h = (float(value) for value in item["bbox"])
        except (KeyError, TypeError, ValueError):
            problems.append(Problem("broken annotation", where, "skipped"))
            continue
        if image_id not in by_image:
            problems.append(Problem("unknown image", where, f"image_id {image_id}, skipped"))
        elif category not in category_ids:
            problems.append(Problem("unknown class", where, f"category {category}, skipped"))
        elif not (np.isfinite([x, y, w, h]).all() and w > 0 and h > 0):
            problems.append(Problem("degenerate box", where, f"{[x, y, w, h]}, skipped"))
        else:
            kept = {"iscrowd": 0, "area": w * h, "id": index + 1, **item}
            usable.append(kept)
            if kept["iscrowd"]:
                crowd += 1
            else:
                by_image[image_id].append(([x, y, x + w, y + h], category))
    return by_image, usable, crowd


def _record(
    image: dict[str, Any],
    folder: Path,
    by_image: dict[int, list[tuple[list[float], int]]],
    category_ids: tuple[int, ...],
    problems: list[Problem],
) -> Record | None:
    image_id, path = int(image["id"]), folder / str(image["file_name"])
    height, width = int(image["height"]), int(image["width"])
    if not path.is_file():
        problems.append(Problem("missing image", str(path), "skipped"))
        return None
    boxes, labels = [], []
    for box, category in by_image[image_id]:
        clipped = np.clip(box, 0, [width, height, width, height])
        if np.abs(clipped - box).max() > 1.0:
            problems.append(Problem("box leaves the image", str(path), f"{box}, clipped"))
        if (clipped[2:] - clipped[:2]).min() <= 0:
            problems.append(Problem("box outside the image", str(path), f"{box}, skipped"))
            continue
        boxes.append(clipped)
        labels.append(category_ids.index(category))
    return Record(
        image_id,
        path,
        height,
        width,
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(labels, dtype=np.int64),
    )
