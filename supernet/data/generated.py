"""Writes detection sets that are drawn, not photographed, in COCO or YOLO format."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from ..atomic import replacing, write_text
from .coco_file import CocoAnnotation, CocoCategory, CocoFile, CocoImage, to_bbox
from .labelled_image import LabelledImage
from .yolo_lines import label_line
from .yolo_yaml import head_text

Draw = Callable[[np.random.Generator], LabelledImage]
"""Draws the next image; its labels are places in the list of names."""
LabelFormat = Literal["coco", "yolo"]


def write_set(
    root: Path,
    draw: Draw,
    names: Sequence[str],
    *,
    train: int,
    val: int,
    seed: int = 0,
    labels: LabelFormat = "coco",
) -> None:
    """Write a train and a val split of so many images; the same seed draws the same set.

    COCO: `<root>/{train,val}/*.jpg` and `<root>/annotations/instances_*.json`. YOLO:
    `<root>/images/{train,val}/*.jpg`, `<root>/labels/{train,val}/*.txt` and `<root>/data.yaml`.
    """
    for number, (split, count) in enumerate((("train", train), ("val", val))):
        rng = np.random.default_rng([seed, number])
        images: list[CocoImage] = []
        annotations: list[CocoAnnotation] = []
        for index in range(count):
            image = draw(rng)
            stem = f"{split}_{index:05d}"
            if labels == "yolo":
                _write_image(root / "images" / split / f"{stem}.jpg", image)
                write_text(root / "labels" / split / f"{stem}.txt", _yolo_lines(image))
                continue
            _write_image(root / split / f"{stem}.jpg", image)
            height, width = image.pixels.shape[:2]
            image_id = number * 100_000 + index + 1
            images.append(
                {"id": image_id, "file_name": f"{stem}.jpg", "width": width, "height": height}
            )
            annotations += _annotations(image, image_id, first=len(annotations) + 1)
        if labels == "coco":
            categories: list[CocoCategory] = [
                {"id": index + 1, "name": name} for index, name in enumerate(names)
            ]
            file: CocoFile = {
                "images": images, "annotations": annotations, "categories": categories
            }  # fmt: skip
            write_text(root / "annotations" / f"instances_{split}.json", json.dumps(file))
    if labels == "yolo":
        write_text(root / "data.yaml", head_text(names, ("train", "val")))


def _write_image(path: Path, image: LabelledImage) -> None:
    with replacing(path) as temporary:
        ok, data = cv2.imencode(".jpg", image.pixels[:, :, ::-1])
        assert ok
        temporary.write_bytes(data.tobytes())


def _annotations(image: LabelledImage, image_id: int, *, first: int) -> list[CocoAnnotation]:
    found: list[CocoAnnotation] = []
    for box, label in zip(image.boxes_xyxy, image.labels, strict=True):
        bbox = to_bbox(box)
        found.append(
            {
                "id": first + len(found),
                "image_id": image_id,
                "category_id": int(label) + 1,
                "bbox": bbox,
                "area": bbox[2] * bbox[3],
                "iscrowd": 0,
            }
        )
    return found


def _yolo_lines(image: LabelledImage) -> str:
    height, width = image.pixels.shape[:2]
    return "".join(
        label_line(int(label), box, (height, width))
        for box, label in zip(image.boxes_xyxy, image.labels, strict=True)
    )


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Return the intersection of two boxes xyxy as a share of the smaller one."""
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(0.0, w) * max(0.0, h) / smaller
