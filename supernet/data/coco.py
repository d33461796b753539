"""Reads detection sets in COCO format: `annotations/instances_<split>.json` beside `<split>/`.

The official naming (`train2017`) is understood too, and sets in YOLO format (`yolo.py`).
Nothing is skipped silently: every problem is kept with its place, for `heat data check` and for the
log of each run. Boxes are read once (`annotations.py`): AP is computed with the records that are
trained on.
"""

import gc
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..errors import DataError
from .annotations import (
    Complain,
    Objects,
    has_box,
    image_key,
    look_like_corners,
    read_objects,
    whole,
)
from .coco_file import RawCoco
from .detection_set import Crowd, DetectionSet, Problem, Record
from .image_files import MAX_PIXELS, Inside, image_size
from .yolo import read_yolo, yolo_file, yolo_splits

MIN_BOXES_TO_JUDGE = 8
"""With fewer boxes their convention is not judged."""


def is_detection_set(root: Path) -> bool:
    """Return whether a folder has annotations; else it may hold images alone."""
    return yolo_file(root) is not None or any((root / "annotations").glob("instances_*.json"))


def splits_of(root: Path) -> tuple[str, ...]:
    """Return the splits that have an annotation file."""
    if root.is_file():
        raise DataError(f"{root} is a file: give its folder, {root.parent}")
    if not root.is_dir():
        raise DataError(f"no data folder at {root} (make one: heat data shapes)")
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


def find_split(root: Path, split: str) -> str | None:
    """Return the name on disk of a split; None where there is none.

    `train` also finds `train2017`, and `val` finds `valid`.
    """
    for name in splits_of(root):
        if name == split or (name.startswith(split) and name[len(split) :].isdigit()):
            return name
    return find_split(root, "valid") if split == "val" else None


def resolve_split(root: Path, split: str) -> str:
    """Return the name on disk of a split; raise `DataError` where there is none."""
    name = find_split(root, split)
    if name is None:
        raise DataError(f"{root} has no split {split!r}: it has {', '.join(splits_of(root))}")
    return name


def load_split(root: Path, split: str) -> DetectionSet:
    """Read one split; raise `DataError` for files that cannot be used at all."""
    name = resolve_split(root, split)
    problems: list[Problem] = []

    def complain(kind: str, where: str, detail: str) -> None:
        problems.append(Problem(kind, where, detail))

    yolo = yolo_file(root)
    with _no_collection():
        if yolo is not None:
            path, raw = yolo, read_yolo(yolo, name, complain)
        else:
            path = root / "annotations" / f"instances_{name}.json"
            raw = read_instances(path)
        # A data.yaml names folders anywhere; an annotation file names images of its own set.
        return assemble(raw, root, name, path, problems, None if yolo else Inside(root))


def assemble(
    raw: RawCoco,
    root: Path,
    split: str,
    path: Path,
    problems: list[Problem],
    inside: Inside | None,
) -> DetectionSet:
    """Return the set of the values that can be used; the others are added to `problems`.

    Images lie in the folder `split` of `root`, or where their absolute paths say.
    """

    def complain(kind: str, where: str, detail: str) -> None:
        problems.append(Problem(kind, where, detail))

    ids, names = _categories(raw, path)
    twice = sorted({name for name in names if names.count(name) > 1})
    for name in twice:
        chosen = [id for id, other in zip(ids, names, strict=True) if other == name]
        complain("two classes of one name", path.name, f"{name}: category ids {chosen}, kept apart")
    keys, files, sizes_hw, first_of = _images(raw, root / split, path, complain, inside)
    image_of: dict[int | str, int | None] = dict.fromkeys(keys)
    present = [index for index, size in enumerate(sizes_hw) if size is not None]
    image_of |= {keys[index]: place for place, index in enumerate(present)}
    image_of |= {keys[again]: image_of[keys[first]] for again, first in first_of.items()}
    if not present:
        raise DataError(_nothing(raw, root / split, path, problems))
    known = {keys[index]: sizes_hw[index] or (0, 0) for index in present}
    corners = look_like_corners(raw.annotations, known, MIN_BOXES_TO_JUDGE)
    if corners:
        raise DataError(f"{path}: {corners}")
    objects = read_objects(
        raw.annotations,
        image_of,
        np.array([sizes_hw[index] for index in present], dtype=np.float64),
        [files[index] for index in present],
        {id: label for label, id in enumerate(ids)},
        path.name,
        complain,
    )
    named = any(isinstance(key, str) for key in keys)  # then images are numbered in their order
    image_ids = [index + 1 if named else int(keys[index]) for index in present]
    paths = [Path(files[index]) for index in present]
    known_hw = [sizes_hw[index] or (0, 0) for index in present]
    records = tuple(_records(image_ids, paths, known_hw, objects))
    return DetectionSet(root, split, path, names, ids, records, tuple(problems))


def _records(
    image_ids: Sequence[int],
    paths: Sequence[Path],
    sizes_hw: Sequence[tuple[int, int]],
    objects: Objects,
) -> Iterator[Record]:
    """Yield the record of each image; crowd regions are kept apart from its objects."""
    facts = zip(image_ids, paths, sizes_hw, objects.of, strict=True)
    for image_id, path, (height, width), part in facts:
        boxes, labels = objects.boxes_M4[part], objects.labels_M[part]
        areas = objects.areas_M[part]
        crowd = objects.crowd_M[part]
        crowds: tuple[Crowd, ...] = ()
        if crowd.any():
            crowds = tuple(
                Crowd(tuple(map(float, boxes[i])), int(labels[i]), float(areas[i]))
                for i in np.flatnonzero(crowd)
            )
            boxes, labels, areas = boxes[~crowd], labels[~crowd], areas[~crowd]
        yield Record(image_id, path, height, width, boxes, labels, areas, crowds)


def _categories(raw: RawCoco, path: Path) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return category ids, sorted, and the names of the classes."""
    try:
        pairs = [(whole(item["id"]), _name(item["name"], path)) for item in raw.categories]
    except (ValueError, TypeError):
        shown = [item["id"] for item in raw.categories]
        raise DataError(f"{path}: category ids must be whole numbers, found {shown}") from None
    pairs.sort()
    ids = tuple(id for id, _ in pairs)
    if len(set(ids)) != len(ids) or not ids:
        raise DataError(f"{path}: categories must be there and have distinct ids, found {ids}")
    return ids, tuple(name for _, name in pairs)


def _name(value: object, path: Path) -> str:
    """Return the name of a class; a number is its text.

    Halves of a character, as JSON may escape it, are put together; a lone one is U+FFFD.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{path}: every class needs a name as text, found {value!r}")
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _images(
    raw: RawCoco, folder: Path, path: Path, complain: Complain, inside: Inside | None
) -> tuple[list[int | str], list[str], list[tuple[int, int] | None], dict[int, int]]:
    """Return ids, files and (height, width) of the images; no size for those left out.

    Last comes the first place of a file by each later one; its boxes are those of both.
    """
    keys: list[int | str] = []
    files: list[str] = []
    sizes: list[tuple[int, int] | None] = []
    firsts: dict[str, int] = {}
    first_of: dict[int, int] = {}
    start = str(folder)
    for index, image in enumerate(raw.images):
        try:
            keys.append(image_key(image["id"]))
        except (ValueError, TypeError):
            raise DataError(f"{path}: images[{index}] has the id {image['id']!r}") from None
        # Joined as text: a Path for each takes longer than the rest of this loop.
        file = os.path.join(start, str(image["file_name"]))  # noqa: PTH118
        if not os.path.isfile(file) and "\\" in file:  # noqa: PTH113
            file = os.path.join(start, str(image["file_name"]).replace("\\", "/"))  # noqa: PTH118
        files.append(file)
        if not os.path.isfile(file):  # noqa: PTH113
            complain("missing image", file, "skipped")
            sizes.append(None)
            continue
        if inside is not None and not inside.has(file):
            complain("image outside the data folder", file, "skipped")
            sizes.append(None)
            continue
        first = firsts.setdefault(os.path.normpath(file), index)
        size = _stated(image)
        if first != index:
            same = size in (None, _stated(raw.images[first]))
            if same:
                first_of[index] = first
            what = "its boxes are added to the first" if same else "of another size, skipped"
            complain("image listed twice", file, f"{path.name} images[{index}], {what}")
            sizes.append(None)
            continue
        too_large = size is not None and size[0] * size[1] > MAX_PIXELS
        if size is None or too_large:
            size = image_size(Path(file))
            what = "skipped" if size is None else f"taken from the file: {size[1]}x{size[0]}"
            stated = f"{image.get('width')!r}x{image.get('height')!r}"
            kind = "image size too large" if too_large else "image size not stated"
            complain(kind, file, f"width x height {stated}, {what}")
        sizes.append(size)
    if len(set(keys)) != len(keys):
        raise DataError(f"{path}: image ids are not distinct")
    return keys, files, sizes, first_of


def _stated(image: Mapping[str, object]) -> tuple[int, int] | None:
    """Return the height and width that an annotation file states; None where they are no sizes."""
    try:
        height, width = whole(image["height"]), whole(image["width"])
    except (KeyError, ValueError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def _nothing(raw: RawCoco, folder: Path, path: Path, problems: list[Problem]) -> str:
    """Return why a split has no usable image."""
    if not raw.images:
        if problems:
            return (
                f"{path}: none of the images of {folder.name} can be used, first: "
                f"{problems[0].kind} {problems[0].where}"
            )
        return f"{path}: no images for {folder.name}"
    return f"{path}: none of its {len(raw.images)} images is in {folder}"


def read_instances(path: Path) -> RawCoco:
    """Read an instances file; raise `DataError` where lists or keys that are needed are missing."""
    try:
        raw = json.loads(path.read_bytes(), object_hook=_lean)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from None
    missing = [
        key
        for key in ("images", "annotations", "categories")
        if not isinstance(raw, dict) or not isinstance(raw.get(key), list)
    ]
    if missing:
        raise DataError(f"{path} is not COCO instances format: no list {', '.join(missing)}")
    for key, needed in (("images", ("id", "file_name")), ("categories", ("id", "name"))):
        for index, item in enumerate(raw[key]):
            if not isinstance(item, dict) or any(name not in item for name in needed):
                raise DataError(f"{path}: {key}[{index}] lacks one of {', '.join(needed)}")
    return RawCoco(raw["images"], raw["annotations"], raw["categories"])


def _lean(item: dict[str, object]) -> dict[str, object]:
    """Drop the polygons of an annotation with a box: they take most of the memory."""
    if "segmentation" in item and has_box(item):
        del item["segmentation"]
    return item


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pause garbage collection: of the millions of values that are made none is in a cycle."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
