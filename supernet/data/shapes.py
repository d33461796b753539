"""A built-in detection set of synthetic shapes, so that demo and tests need no download.

Discs, squares, triangles and rings in random colours on a noisy background, partly overlapping.
"""

import json
from pathlib import Path

import cv2
import numpy as np

from ..atomic import replacing, write_text
from ..letterbox import Image
from .coco_file import CocoAnnotation, CocoCategory, CocoFile, CocoImage, to_bbox
from .labelled_image import LabelledImage

NAMES = ("disc", "square", "triangle", "ring")
SIDE_PX = (192, 256)
"""Height and width of the images."""


def make_shapes(root: Path, *, train: int = 160, val: int = 40, seed: int = 0) -> None:
    """Write `<root>/{train,val}/*.jpg` and COCO annotations; the same seed gives the same set."""
    for number, (split, count) in enumerate((("train", train), ("val", val))):
        rng = np.random.default_rng([seed, number])
        images: list[CocoImage] = []
        annotations: list[CocoAnnotation] = []
        for index in range(count):
            image = draw(rng)
            file_name = f"{split}_{index:05d}.jpg"
            image_id = number * 100_000 + index + 1
            with replacing(root / split / file_name) as temporary:
                ok, data = cv2.imencode(".jpg", image.pixels[:, :, ::-1])
                assert ok
                temporary.write_bytes(data.tobytes())
            height, width = SIDE_PX
            images.append(
                {"id": image_id, "file_name": file_name, "width": width, "height": height}
            )
            for box, label in zip(image.boxes_xyxy, image.labels, strict=True):
                bbox = to_bbox(box)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": int(label) + 1,
                        "bbox": bbox,
                        "area": bbox[2] * bbox[3],
                        "iscrowd": 0,
                    }
                )
        categories: list[CocoCategory] = [
            {"id": index + 1, "name": name} for index, name in enumerate(NAMES)
        ]
        file: CocoFile = {"images": images, "annotations": annotations, "categories": categories}
        write_text(root / "annotations" / f"instances_{split}.json", json.dumps(file))


def draw(rng: np.random.Generator) -> LabelledImage:
    """Draw one image; its labels are places in `NAMES`."""
    height, width = SIDE_PX
    background = rng.integers(60, 190, 3)
    noise = rng.normal(0, 12, (height, width, 3))
    pixels = np.clip(background + noise, 0, 255).astype(np.uint8)
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    for _ in range(int(rng.integers(1, 6))):
        side = int(rng.integers(24, 90))
        x = int(rng.integers(0, width - side))
        y = int(rng.integers(0, height - side))
        if any(_overlap((x, y, x + side, y + side), box) > 0.2 for box in boxes):
            continue
        label = int(rng.integers(len(NAMES)))
        colour = tuple(int(value) for value in (background + rng.integers(70, 150, 3)) % 256)
        _draw_one(pixels, NAMES[label], x, y, side, colour)
        boxes.append((x, y, x + side, y + side))
        labels.append(label)
    return LabelledImage(pixels, np.array(boxes, np.float32), np.array(labels, np.int64))


def _draw_one(pixels: Image, name: str, x: int, y: int, side: int, colour: tuple[int, ...]) -> None:
    centre, radius = (x + side // 2, y + side // 2), side // 2
    if name == "disc":
        cv2.circle(pixels, centre, radius, colour, -1)
    elif name == "ring":
        cv2.circle(pixels, centre, radius - side // 10, colour, side // 5)
    elif name == "square":
        cv2.rectangle(pixels, (x, y), (x + side - 1, y + side - 1), colour, -1)
    else:
        corners = np.array([[x, y + side - 1], [x + side - 1, y + side - 1], [x + side // 2, y]])
        cv2.fillPoly(pixels, [corners], colour)


def _overlap(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Return the intersection of two boxes xyxy as a share of the smaller one."""
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(0, w) * max(0, h) / smaller
