"""Writes detection sets that have some of the training images of another, and its whole val."""

import json
import shutil
from collections.abc import Collection
from pathlib import Path

from supernet.data.detection_set import DetectionSet


def write_subset(data: DetectionSet, root: Path, kept: Collection[int], folder: Path) -> Path:
    """Write the training images with the given places in `data`, and link the val of `root`."""
    chosen = [data.records[place] for place in sorted(kept)]
    ids = {record.image_id for record in chosen}
    truth = data.ground_truth
    truth["images"] = [image for image in truth["images"] if image["id"] in ids]
    truth["annotations"] = [each for each in truth["annotations"] if each["image_id"] in ids]
    for part in ("annotations", "train"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(truth))
    for place in (Path("annotations") / "instances_val.json", Path("val")):
        if not (folder / place).is_symlink():
            (folder / place).symlink_to((root / place).absolute())
    for record in chosen:
        shutil.copy2(record.path, folder / "train")
    return folder
