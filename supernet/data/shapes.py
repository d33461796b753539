"""A built-in detection set of synthetic shapes, so that demo and tests need no download.

Discs, squares, triangles and rings in random colours on a noisy background, partly overlapping.
"""

from pathlib import Path

import cv2
import numpy as np

from ..letterbox import Image
from .generated import LabelFormat, overlap, write_set
from .labelled_image import LabelledImage

NAMES = ("disc", "square", "triangle", "ring")
SIDE_PX = (192, 256)
"""Height and width of the images."""


def make_shapes(
    root: Path, *, train: int = 160, val: int = 40, seed: int = 0, labels: LabelFormat = "coco"
) -> None:
    """Write a set of shapes (`write_set`)."""
    write_set(root, draw, NAMES, train=train, val=val, seed=seed, labels=labels)


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
        if any(overlap((x, y, x + side, y + side), box) > 0.2 for box in boxes):
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
