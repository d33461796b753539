"""The formats that `heat data convert` reads and writes, and how an export's is recognised."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..atomic import write_text
from ..errors import DataError
from .annotations import Complain
from .coco import assemble, load_split, read_instances, splits_of
from .coco_file import RawCoco
from .cvat import NAME as CVAT_NAME
from .cvat import read_cvat, write_cvat
from .detection_set import DetectionSet, Problem
from .exported import Written, read_xml, split_name
from .format_names import Format
from .image_search import ImageSearch, parts_of
from .label_studio import is_label_studio, read_label_studio, write_label_studio
from .voc import is_voc, read_voc, write_voc
from .yolo import read_labels, yolo_file
from .yolo_lines import label_line
from .yolo_yaml import Head, head_text, read_head

Reader = Callable[[Path, Path, Complain], dict[str, RawCoco]]
"""From an export and the folder of its images to the lists of each split; "" is no split."""

ROBOFLOW = "_annotations.coco.json"
CLASS_LISTS = ("classes.txt", "obj.names", "labels/classes.txt")
"""Names of classes, one a line, where a YOLO export has no data.yaml."""


def format_of(source: Path) -> Format:
    """Return the format of an export; raise `DataError` where none is recognised."""
    if not source.exists():
        raise DataError(f"no export at {source}")
    if source.is_file():
        if source.suffix.lower() == ".xml":
            return "cvat" if read_xml(source).tag == "annotations" else "voc"
        if source.suffix.lower() == ".json":
            return "label-studio" if is_label_studio(_json(source)) else "coco"
        if source.suffix.lower() in (".yaml", ".yml"):
            return "yolo"
        raise DataError(f"{source} is no .json, .xml or .yaml file: give --from")
    if any(source.glob("annotations/*.json")) or any(source.glob(f"*/{ROBOFLOW}")):
        return "coco"
    if (source / "data.yaml").is_file() or (source / "data.yml").is_file() or _classes(source):
        return "yolo"
    if (source / CVAT_NAME).is_file():
        return "cvat"
    if is_voc(source):
        return "voc"
    if any(is_label_studio(_json(path)) for path in source.glob("*.json")):
        return "label-studio"
    raise DataError(
        f"{source} is no export that is known (COCO, YOLO, Pascal VOC, CVAT, Label Studio): give "
        "the file itself, or --from"
    )


def read_export(source: Path, format: Format, images: Path | None) -> list[DetectionSet]:
    """Return the splits of an export, each checked as sets to train on are; "" is no split.

    Raises `DataError` for files that cannot be used at all.
    """
    if images is not None and not images.is_dir():
        raise DataError(f"--images {images}: no such folder")
    folder = source if source.is_dir() else source.parent
    if images is None and _is_set(source, format):
        return [load_split(source, split) for split in splits_of(source)]
    problems: list[Problem] = []

    def complain(kind: str, where: str, detail: str) -> None:
        problems.append(Problem(kind, where, detail))

    raw = READERS[format](source, images or folder, complain)
    sets = []
    for split, lists in raw.items():
        sets.append(assemble(lists, folder, split, source, problems, None))
        problems = []
    return sets


def _is_set(root: Path, format: Format) -> bool:
    """Return whether a folder is one that is trained on as it is."""
    if not root.is_dir():
        return False
    if format == "coco":
        named = any((root / "annotations").glob("instances_*.json"))
        return named and all((root / split).is_dir() for split in splits_of(root))
    return format == "yolo" and yolo_file(root) is not None


def _read_coco(source: Path, images: Path, complain: Complain) -> dict[str, RawCoco]:
    files = {source: ""}
    if source.is_dir():
        # Beside them the official sets have captions and keypoints.
        named = sorted(source.glob("annotations/instances_*.json"))
        named = named or sorted(source.glob("annotations/*.json"))
        roboflow = sorted(source.glob(f"*/{ROBOFLOW}"))
        files = {path: split_name(_plain(path.stem)) for path in named} if named else {
            path: split_name(path.parent.name) for path in roboflow
        }  # fmt: skip
    search = ImageSearch(images)
    found: dict[str, RawCoco] = {}
    for path, split in files.items():
        if split in found:
            twice = ", ".join(str(other) for other, name in files.items() if name == split)
            raise DataError(f"{twice} are of one split, {split}: join them, or convert one by one")
        raw = read_instances(path)
        near = ImageSearch(path.parent) if path.name == ROBOFLOW else search
        placed = []
        for image in raw.images:
            file = near.find(str(image["file_name"])) or search.find(str(image["file_name"]))
            # What is not found is reported as missing, at a place within the folder.
            file = file or images.joinpath(*parts_of(str(image["file_name"])))
            placed.append({**image, "file_name": str(file.absolute())})
        found[split] = RawCoco(placed, raw.annotations, raw.categories)
    return found


def _plain(stem: str) -> str:
    """Return the split that an annotation file is named after; CVAT's default is none."""
    name = stem.removeprefix("instances_")
    return "" if name.lower() == "default" else name


def _read_yolo(source: Path, images: Path, complain: Complain) -> dict[str, RawCoco]:
    is_yaml = source.is_file() and source.suffix.lower() in (".yaml", ".yml")
    root = source if source.is_dir() else source.parent
    described = source if is_yaml else yolo_file(root)
    head = read_head(described) if described is not None else _listed_head(root)
    if described is not None and images == root:
        return {split: read_labels(head, split, complain) for split in head.splits}
    there = replace(head, base=str(images.absolute()))
    if described is not None and all(map(there.is_there, there.splits)):
        return {
            split: read_labels(there, split, complain, beside=_labels_of(root, split))
            for split in there.splits
        }
    there = replace(there, splits=_darknet_splits(images))
    raw = {split: read_labels(there, split, complain, beside=root) for split in there.splits}
    if not any(each.annotations for each in raw.values()):
        count = sum(len(each.images) for each in raw.values())
        raise DataError(
            f"{source}: none of the {count} images in {images} has a box: their labels are looked "
            f"for beside them and in {root / 'labels'}"
        )
    return raw


def _listed_head(root: Path) -> Head:
    """Return the classes of a list, one a line; raise `DataError` where there is none."""
    listed = _classes(root)
    if listed is None:
        raise DataError(f"{root} has neither data.yaml nor classes.txt: one names the classes")
    text = listed.read_text(encoding="utf-8-sig", errors="replace")
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names:
        raise DataError(f"{listed} names no class")
    return Head(listed.absolute(), names, 0, "", {})


def _darknet_splits(images: Path) -> dict[str, tuple[str, ...]]:
    """Return the folders `obj_SPLIT_data` by split; "" for all images, where there are not two."""
    found: dict[str, tuple[str, ...]] = {
        split_name(folder.name.removeprefix("obj_").removesuffix("_data")): (folder.name,)
        for folder in sorted(images.glob("obj_*_data"))
    }
    if len(found) > 1:
        return found
    folder = "images" if (images / "images").is_dir() else "."
    return {"": next(iter(found.values()), (folder,))}


def _labels_of(root: Path, split: str) -> Path:
    """Return the folder of a split's labels: an image of another may have the same name."""
    places = (root / "labels" / split, root / split / "labels")
    return next((place for place in places if place.is_dir()), root)


def _classes(root: Path) -> Path | None:
    return next((root / name for name in CLASS_LISTS if (root / name).is_file()), None)


def _read_cvat(source: Path, images: Path, complain: Complain) -> dict[str, RawCoco]:
    return read_cvat(source / CVAT_NAME if source.is_dir() else source, images, complain)


def _read_voc(source: Path, images: Path, complain: Complain) -> dict[str, RawCoco]:
    return read_voc(source if source.is_dir() else source.parent, images, complain)


def _read_label_studio(source: Path, images: Path, complain: Complain) -> dict[str, RawCoco]:
    if source.is_dir():
        files = [path for path in sorted(source.glob("*.json")) if is_label_studio(_json(path))]
        if len(files) != 1:
            raise DataError(f"{source}: {len(files)} lists of tasks, give the file itself")
        source = files[0]
    return read_label_studio(source, images, complain)


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


READERS: Mapping[Format, Reader] = {
    "coco": _read_coco,
    "yolo": _read_yolo,
    "voc": _read_voc,
    "cvat": _read_cvat,
    "label-studio": _read_label_studio,
}


def _write_coco(root: Path, written: Written) -> None:
    for split, items in written.splits.items():
        data = DetectionSet(
            root, split, root, tuple(written.names), tuple(written.category_ids),
            tuple(item.record for item in items),
        )  # fmt: skip
        file = data.ground_truth
        for image, item in zip(file["images"], items, strict=True):
            image["file_name"] = item.name
        write_text(root / "annotations" / f"instances_{split}.json", json.dumps(file) + "\n")


def _write_yolo(root: Path, written: Written) -> None:
    strange = [split for split in written.splits if split not in ("train", "val", "test")]
    if strange:
        raise DataError(f"YOLO has the splits train, val and test, not {', '.join(strange)}")
    for split, items in written.splits.items():
        for item in items:
            record = item.record
            pairs = zip(record.boxes_xyxy.tolist(), record.labels.tolist(), strict=True)
            lines = [label_line(index, box, (record.height, record.width)) for box, index in pairs]
            file = root / "labels" / split / Path(item.name).with_suffix(".txt")
            if file.exists():
                raise DataError(f"YOLO: two images would have their labels in {split}/{file.name}")
            write_text(file, "".join(lines))
    write_text(root / "data.yaml", head_text(written.names, written.splits))


Writer = Callable[[Path, Written], None]
WRITERS: Mapping[Format, tuple[Writer, str]] = {
    "coco": (_write_coco, "{split}"),
    "yolo": (_write_yolo, "images/{split}"),
    "voc": (write_voc, "JPEGImages"),
    "cvat": (write_cvat, "images/{split}"),
    "label-studio": (write_label_studio, "images/{split}"),
}
"""Writes the annotations of a set; and where its images go."""
HOLD_CROWDS: Sequence[Format] = ("coco",)
