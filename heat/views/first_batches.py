"""A figure of the first batches of a training, without matplotlib, which is slow to import."""

import math
from pathlib import Path

import cv2
import numpy as np

from supernet.atomic import write_bytes
from supernet.data.detection_set import DetectionSet
from supernet.letterbox import Image
from supernet.train.feed import feed
from supernet.train.recipes import TrainConfig

SHOWN = 16
"""Images that are shown."""
COLOURS = (
    (255, 80, 80),
    (80, 200, 80),
    (90, 140, 255),
    (255, 190, 0),
    (220, 90, 255),
    (0, 210, 210),
)


def draw_batches(
    data: DetectionSet, input_hw: tuple[int, int], config: TrainConfig, path: Path
) -> Path:
    """Save the first training images with their boxes, as the network gets them."""
    tiles: list[Image] = []
    for images, targets in feed(data, input_hw, config, range(1)):
        for image, target in zip(images, targets, strict=True):
            tile = image.numpy().copy()
            for box, label in zip(target.boxes_xyxy.tolist(), target.labels.tolist(), strict=True):
                colour = COLOURS[label % len(COLOURS)]
                x0, y0, x1, y1 = (round(v) for v in box)
                cv2.rectangle(tile, (x0, y0), (x1, y1), colour, 2)
                cv2.putText(
                    tile, data.names[label], (x0, max(12, y0 - 3)), cv2.FONT_HERSHEY_SIMPLEX, 0.4,
                    colour, 1, cv2.LINE_AA,
                )  # fmt: skip
            tiles.append(tile)
        if len(tiles) >= SHOWN:
            break
    columns = math.ceil(math.sqrt(len(tiles[:SHOWN])))
    blank = np.zeros_like(tiles[0])
    tiles = tiles[:SHOWN] + [blank] * (-len(tiles[:SHOWN]) % columns)
    rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    _, encoded = cv2.imencode(".jpg", np.vstack(rows)[:, :, ::-1])
    write_bytes(path, encoded.tobytes())
    return path
