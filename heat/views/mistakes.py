"""A figure of the images that a detector gets most wrong."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from supernet.atomic import write_bytes
from supernet.data.mistakes import Kind, Mistaken
from supernet.letterbox import Image, read_image

SHOWN = 12
COLUMNS = 3
TILE_PX = 360
"""Width of an image in the figure, and its largest height."""
COLOURS: dict[Kind, tuple[int, int, int]] = {
    "missed": (40, 110, 255),
    "wrong class": (255, 150, 0),
    "nothing there": (230, 30, 30),
}
"""RGB."""


def draw_mistakes(wrong: Sequence[Mistaken], names: Sequence[str], path: Path) -> Path | None:
    """Save the worst images with their mistakes, the costliest first; None where there is none.

    Blue: missed. Orange: another class was found. Red: nothing is there.
    """
    tiles = [tile for image in wrong[:SHOWN] if (tile := _tile(image, names)) is not None]
    if not tiles:
        return None
    rows = []
    for start in range(0, len(tiles), COLUMNS):
        row = tiles[start : start + COLUMNS]
        height = max(tile.shape[0] for tile in row)
        row += [np.zeros((1, TILE_PX, 3), np.uint8)] * (COLUMNS - len(row))
        rows.append(np.hstack([_padded(tile, height) for tile in row]))
    ok, encoded = cv2.imencode(".jpg", np.vstack(rows)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    assert ok
    write_bytes(path, encoded.tobytes())
    return path


def _tile(image: Mistaken, names: Sequence[str]) -> Image | None:
    pixels = read_image(image.record.path, (image.record.height, image.record.width))
    if pixels is None:
        return None
    scale = TILE_PX / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    tile = np.ascontiguousarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    factor = np.array([size[0] / image.record.width, size[1] / image.record.height] * 2)
    for mistake in sorted(image.mistakes, key=lambda each: each.cost):
        x0, y0, x1, y1 = (round(float(v)) for v in np.array(mistake.box_xyxy) * factor)
        colour = COLOURS[mistake.kind]
        cv2.rectangle(tile, (x0, y0), (x1, y1), colour, 2)
        if mistake.found is not None:
            text = f"{names[mistake.found]} {mistake.score:.2f}"
            if mistake.truth is not None:
                text += f" is {names[mistake.truth]}"
        else:
            text = names[mistake.truth] if mistake.truth is not None else ""
        cv2.putText(
            tile, text, (x0, max(11, y0 - 3)), cv2.FONT_HERSHEY_SIMPLEX, 0.38, colour, 1,
            cv2.LINE_AA,
        )  # fmt: skip
    return _padded(np.asarray(tile, dtype=np.uint8), tile.shape[0])


def _padded(tile: Image, height: int) -> Image:
    padded = np.zeros((height, TILE_PX, 3), np.uint8)
    padded[: tile.shape[0], : tile.shape[1]] = tile
    return padded
