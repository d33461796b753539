"""A built-in detection set of synthetic shapes, so that demo and tests need no download.

Discs, squares, triangles and rings in random colours on a noisy ground, partly overlapping.
"""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..atomic import replacing, write_text

NAMES = ("disc", "square", "triangle", "ring")
SIDE_PX = (192, 256)
"""Height and width of the images."""


def make_shapes(root: Path, *, train: int = 160, val: int = 40, seed: int = 0) -> None:
    """Write `<root>/{train,val}/*.jpg` and COCO annotations; the same seed gives the same set."""
    for number, (split, count) in enumerate((("train", train), ("val", val))):
        rng = np.random.default_rng([seed, number])
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            pixels, boxes, labels = draw(rng)
            file_name = f"{split}_{index:05d}.jpg"
            image_id = number * 100_000 + index + 1
            with replacing(root / split / file_name) as temporary:
                ok, data = cv2.imencode(".jpg", pixels[:, :, ::-1])
                assert ok
                temporary.write_bytes(data.tobytes())
            height, width = pixels.shape[:2]
            images.append(
                {"id": image_id, "file_name": file_name, "width": width, "height": height}
            )
            for (x0, y0, x1, y1), label in zip(boxes, labels, strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": label + 1,
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": (x1 - x0) * (y1 - y0),
                        "iscrowd": 0,
                    }
                )
        categories = [{"id": index + 1, "name": name} for index, name in enumerate(NAMES)]
        text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
        write_text(root / "annotations" / f"instances_{split}.json", text)


def draw(
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.uint8], list[tuple[float, float, float, float]], list[int]]:
    """Draw one image; returns RGB pixels, boxes xyxy in pixels, class indices."""
    height, width = SIDE_PX
    ground = rng.integers(60, 190, 3)
    noise = rng.normal(0, 12, (height, width, 3))
    pixels = np.clip(ground + noise, 0, 255).astype(np.uint8)
    boxes: list[tuple[float, float, float, float]] = []
    labels: list[int] = []
    for _ in range(int(rng.integers(1, 6))):
        side = int(rng.integers(24, 90))
        x = int(rng.integers(0, width - side))
        y = int(rng.integers(0, height - side))
        if any(_overlap((x, y, x + side, y + side), box) > 0.2 for box in boxes):
            continue
        label = int(rng.integers(len(NAMES)))
        colour = tuple(int(value) for value in (ground + rng.integers(70, 150, 3)) % 256)
        _draw_one(pixels, NAMES[label], x, y, side, colour)
        boxes.append((float(x), float(y), float(x + side), float(y + side)))
        labels.append(label)
    return pixels, boxes, labels


def _draw_one(
    pixels: npt.NDArray[np.uint8], name: str, x: int, y: int, side: int, colour: tuple[int, ...]
) -> None:
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


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(0.0, w) * max(0.0, h) / smaller
