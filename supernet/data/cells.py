"""A built-in detection set that looks like a real task: a blood smear under a microscope.

Red cells, white cells and platelets, drawn by their absorption of light, so that overlaps darken;
with uneven light, stains, debris out of focus, defocus, crowding and noise. Nothing is copied from
a photograph.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from .generated import LabelFormat, overlap, write_set
from .labelled_image import LabelledImage

NAMES = ("red cell", "white cell", "platelet")
SIDE_PX = (240, 320)
"""Height and width of the images."""
RED_RADIUS_PX = (15.0, 22.0)
"""Of a whole smear; its cells differ by a tenth."""
SHOWN = 0.35
"""Share of an object that must lie in the image for a box."""
COVERED = 0.6
"""Share of a box that may lie under one other cell."""

Map = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Smear:
    """What all cells of an image share."""

    radius_px: float
    """Of a red cell."""
    red_RGB: Map
    """Share of the light that a red cell absorbs."""
    violet_RGB: Map
    """Share that a stained nucleus absorbs."""
    blur_px: float
    """Standard deviation of the defocus."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell before it lies in an image, in the middle of a square patch."""

    absorbed_RGB: Map
    """Share of the light that it absorbs, [side, side, 3]."""
    body: Map
    """1 inside its outline, 0 outside, [side, side]."""


def make_cells(
    root: Path, *, train: int = 160, val: int = 40, seed: int = 0, labels: LabelFormat = "coco"
) -> None:
    """Write a set of smears (`write_set`)."""
    write_set(root, draw, NAMES, train=train, val=val, seed=seed, labels=labels)


def draw(rng: np.random.Generator) -> LabelledImage:
    """Draw one smear; its labels are places in `NAMES`."""
    smear = Smear(
        radius_px=rng.uniform(*RED_RADIUS_PX),
        red_RGB=np.array([0.10, 0.42, 0.36], np.float32) * rng.uniform(0.75, 1.15),
        violet_RGB=np.array([0.62, 0.80, 0.38], np.float32) * rng.uniform(0.85, 1.1),
        blur_px=float(rng.choice([0.5, 0.7, 1.0, 1.6])),
    )
    light = background(rng)
    boxes: list[tuple[float, float, float, float]] = []
    labels: list[int] = []
    for label in _kinds(rng):
        for _ in range(8):  # places that are tried
            cell = (red_cell, white_cell, platelet)[label](rng, smear)
            y, x = (int(place) for place in rng.uniform(-0.04, 1.04, 2) * SIDE_PX)
            box = placed(cell, x, y)
            if box is not None and all(overlap(box, other) < COVERED for other in boxes):
                lay(cell, x, y, light)
                boxes.append(box)
                labels.append(label)
                break
    debris(rng, smear, light)
    pixels = np.asarray(cv2.GaussianBlur(light, (0, 0), smear.blur_px), dtype=np.float64)
    pixels += rng.normal(0, 0.012, pixels.shape) * np.sqrt(pixels.clip(0.05, 1))
    return LabelledImage(
        np.round(pixels.clip(0, 1) * 255).astype(np.uint8),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
    )


def _kinds(rng: np.random.Generator) -> list[int]:
    """Return the kinds of cells of an image: from few to crowded, mostly red ones."""
    red = int(rng.choice([4, 8, 14, 22, 34]) * rng.uniform(0.7, 1.3))
    white = int(rng.choice([0, 1, 1, 2]))
    platelets = int(rng.choice([0, 1, 2, 4]))
    return [*([1] * white), *([0] * max(1, red)), *([2] * platelets)]


def background(rng: np.random.Generator) -> Map:
    """Return the light without cells: tinted, brighter on one side, darker at the corners."""
    height, width = SIDE_PX
    tint = np.array([0.93, 0.90, 0.93]) + rng.normal(0, 0.02, 3)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    angle = rng.uniform(0, 2 * math.pi)
    slope = rng.uniform(0, 0.12) * (math.cos(angle) * x + math.sin(angle) * y)
    corners = rng.uniform(0, 0.10) * (x**2 + y**2)
    cloud = cv2.resize(rng.normal(0, 0.02, (5, 6)).astype(np.float32), (width, height))
    light = tint * (1 + slope - corners + cloud)[:, :, None]
    return np.asarray(light, dtype=np.float32)


def red_cell(rng: np.random.Generator, smear: Smear) -> Cell:
    """Return a disc with a pale centre."""
    radius = smear.radius_px * rng.uniform(0.92, 1.08)
    grid = _grid(radius)
    distance = _distance(grid, (0.0, 0.0), radius, rng, 0.05)
    body = _edge(distance)
    pale = rng.uniform(0.25, 0.6) * np.exp(-((distance / rng.uniform(0.4, 0.55)) ** 2))
    return Cell((body * (1 - pale))[:, :, None] * smear.red_RGB, body)


def white_cell(rng: np.random.Generator, smear: Smear) -> Cell:
    """Return pale plasma around a nucleus of one to four lobes."""
    radius = smear.radius_px * rng.uniform(1.5, 2.1)
    grid = _grid(radius)
    body = _edge(_distance(grid, (0.0, 0.0), radius, rng, 0.08))
    nucleus = np.zeros_like(body)
    lobes = int(rng.integers(1, 5))
    angle = rng.uniform(0, 2 * math.pi)
    for _ in range(lobes):
        away = 0.0 if lobes == 1 else radius * rng.uniform(0.3, 0.45)
        size = radius * (rng.uniform(0.6, 0.75) if lobes == 1 else rng.uniform(0.32, 0.45))
        place = away * math.cos(angle), away * math.sin(angle)
        nucleus = np.maximum(nucleus, _edge(_distance(grid, place, size, rng, 0.1), 0.1))
        angle += rng.uniform(1.1, 1.6)
    plasma = np.array([0.22, 0.26, 0.10], np.float32) * rng.uniform(0.6, 1.2)
    stained = nucleus * body * _grain(rng, body, 0.12, 1.5)
    absorbed = body[:, :, None] * plasma + stained[:, :, None] * smear.violet_RGB
    return Cell(absorbed.clip(0, 0.95), body)


def platelet(rng: np.random.Generator, smear: Smear) -> Cell:
    """Return a small, rough and grainy body."""
    radius = smear.radius_px * rng.uniform(0.28, 0.45)
    grid = _grid(radius)
    body = _edge(_distance(grid, (0.0, 0.0), radius, rng, 0.15), 0.15)
    stained = (body * _grain(rng, body, 0.2, 0.7))[:, :, None] * smear.violet_RGB
    return Cell((stained * rng.uniform(0.5, 0.8)).clip(0, 0.95), body)


def placed(cell: Cell, x: int, y: int) -> tuple[float, float, float, float] | None:
    """Return the box of a cell whose middle is at (x, y); None where too little of it shows."""
    inside, outside = _windows(cell, x, y)
    solid = cell.body > 0.5
    seen = solid[inside]
    if seen.sum() < SHOWN * solid.sum():
        return None
    rows, columns = np.nonzero(seen.any(1))[0], np.nonzero(seen.any(0))[0]
    top, left = outside[0].start, outside[1].start
    return (
        float(left + columns[0]),
        float(top + rows[0]),
        float(left + columns[-1] + 1),
        float(top + rows[-1] + 1),
    )


def lay(cell: Cell, x: int, y: int, light: Map) -> None:
    """Take from the light what a cell at (x, y) absorbs."""
    inside, outside = _windows(cell, x, y)
    light[outside] *= 1 - cell.absorbed_RGB[inside]


def _windows(cell: Cell, x: int, y: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the part of the patch that lies in the image, and where it lies there."""
    parts: list[tuple[slice, slice]] = []
    for place, side in zip((y, x), SIDE_PX, strict=True):
        start = place - cell.body.shape[0] // 2
        first, last = max(0, start), max(0, min(side, start + cell.body.shape[0]))
        first = min(first, last)
        parts.append((slice(first - start, last - start), slice(first, last)))
    (rows_in, rows_out), (columns_in, columns_out) = parts
    return (rows_in, columns_in), (rows_out, columns_out)


def _grid(radius: float) -> tuple[Map, Map]:
    """Return x and y of a patch's pixels from its middle, with room for a rough outline."""
    reach = math.ceil(1.5 * radius) + 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    return x, y


def _distance(
    grid: tuple[Map, Map],
    centre: tuple[float, float],
    radius: float,
    rng: np.random.Generator,
    rough: float,
) -> Map:
    """Return each pixel's distance from a blob's centre over its outline's: 1 on the outline."""
    x, y = grid[0] - centre[0], grid[1] - centre[1]
    turn, squash = rng.uniform(0, math.pi), rng.uniform(0.86, 1.0)
    along = math.cos(turn) * x + math.sin(turn) * y
    across = (-math.sin(turn) * x + math.cos(turn) * y) / squash
    theta = np.arctan2(across, along)
    outline = np.ones_like(theta)
    for wave in range(2, 6):
        phase = rng.uniform(0, 2 * math.pi)
        outline += rough * rng.normal() / wave * np.cos(wave * theta + phase)
    return np.asarray(np.hypot(along, across) / (radius * outline.clip(0.5)), dtype=np.float32)


def _edge(distance: Map, softness: float = 0.06) -> Map:
    """Return 1 inside an outline and 0 outside, with a soft edge."""
    return np.asarray(1 / (1 + np.exp(((distance - 1) / softness).clip(-30, 30))), np.float32)


def _grain(rng: np.random.Generator, body: Map, strength: float, size_px: float) -> Map:
    """Return factors around 1 that vary from grain to grain."""
    noise = cv2.GaussianBlur(rng.normal(0, 1, body.shape).astype(np.float32), (0, 0), size_px)
    return np.asarray(1 + strength * noise / max(float(noise.std()), 1e-6), dtype=np.float32)


def debris(rng: np.random.Generator, smear: Smear, light: Map) -> None:
    """Darken an image by what is no cell: dust far out of focus, grains of stain, a fibre."""
    height, width = SIDE_PX
    dirt = np.zeros(SIDE_PX, np.float32)
    for _ in range(int(rng.integers(0, 4))):
        centre = int(rng.integers(width)), int(rng.integers(height))
        cv2.circle(dirt, centre, int(rng.integers(3, 14)), float(rng.uniform(0.1, 0.3)), -1)
    dirt = np.asarray(cv2.GaussianBlur(dirt, (0, 0), float(rng.uniform(3, 7))), dtype=np.float32)
    for _ in range(int(rng.integers(0, 12))):
        grain = int(rng.integers(width)), int(rng.integers(height))
        cv2.circle(dirt, grain, 1, float(rng.uniform(0.2, 0.6)), -1, cv2.LINE_AA)
    if rng.random() < 0.25:
        start, bend, end = (rng.uniform(0, 1, 2) * (width, height) for _ in range(3))
        t = np.linspace(0, 1, 40)[:, None]
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
        cv2.polylines(dirt, [curve.round().astype(np.int32)], False, 0.25, 1, cv2.LINE_AA)
    light *= 1 - dirt[:, :, None] * smear.violet_RGB
