"""Writes detection sets of some of the training images of another, or of those of two."""

import json
import shutil
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from supernet.data.coco import load_split
from supernet.data.coco_file import CocoFile
from supernet.data.detection_set import DetectionSet


def write_subset(data: DetectionSet, root: Path, kept: Collection[int], folder: Path) -> Path:
    """Write the training images with the given places in `data`, and link the val of `root`."""
    images = [data.records[place].path for place in sorted(kept)]
    return _write(_part(data, kept), images, root, folder)


def write_joined(first: Path, second: Path, folder: Path) -> Path:
    """Write the training images of a set and those of another that have boxes, with its val.

    Classes are matched by name; images of the same name in both would be one.
    """
    data = load_split(first, "train")
    more = load_split(second, "train").numbered_as(data.names)
    more = replace(more, category_ids=data.category_ids)  # each set has ids of its own
    places = [place for place, record in enumerate(more.records) if len(record.boxes_xyxy)]
    truth, added = data.ground_truth, _part(more, places)
    shift = 1 + max(record.image_id for record in data.records)
    truth["images"] += [{**image, "id": image["id"] + shift} for image in added["images"]]
    truth["annotations"] += [
        {**each, "id": len(truth["annotations"]) + each["id"], "image_id": each["image_id"] + shift}
        for each in added["annotations"]
    ]
    records = [*data.records, *(more.records[place] for place in places)]
    return _write(truth, [record.path for record in records], first, folder)


def _part(data: DetectionSet, kept: Collection[int]) -> CocoFile:
    """Return the images with the given places, and their annotations."""
    ids = {data.records[place].image_id for place in kept}
    truth = data.ground_truth
    truth["images"] = [image for image in truth["images"] if image["id"] in ids]
    truth["annotations"] = [each for each in truth["annotations"] if each["image_id"] in ids]
    return truth


def _write(truth: CocoFile, images: Iterable[Path], root: Path, folder: Path) -> Path:
    for part in ("annotations", "train"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(truth))
    for place in (Path("annotations") / "instances_val.json", Path("val")):
        if not (folder / place).is_symlink():
            (folder / place).symlink_to((root / place).absolute())
    for image in images:
        shutil.copy2(image, folder / "train")
    return folder
