"""Training augmentation: images are placed on the network input, flipped, recoloured.

`augment` places one image, `mosaic` four around a point (Bochkovskiy et al. 2020). Every image is
resized once, by the rule of evaluation (`letterbox.resized`), and placed on whole pixels: moving it
by a part of a pixel would blur what evaluation sees sharp.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..letterbox import PAD_RGB, Image, resized, scale_to_fit
from .joined_weights import joined_weights
from .labelled_image import LabelledImage

MIN_VISIBLE = 0.25
"""A box of which less is left inside the image is dropped."""
MIN_SIDE_PX = 2.0
CROP = (384 / 800, 600 / 800)
"""Smallest and largest side of DETR's crop, relative to a short side of 800 pixels."""
SHORT_SIDES = (400 / 800, 500 / 800, 600 / 800)
"""Short sides at which DETR crops."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """How strongly training images are changed."""

    flip: float = 0.5
    """Probability of a left-right flip."""
    flip_vertical: float = 0.0
    """Probability of an upside-down flip."""
    scale: tuple[float, float] = (0.7, 1.4)
    """Zoom range relative to the letterbox."""
    shift: float = 0.15
    """Largest shift of the image, as a share of the input side."""
    shifted: float = 1.0
    """Probability of a shift; without one the image lies where evaluation places it."""
    crop: float = 0.0
    """Probability of DETR's crop before the zoom."""
    brightness: float = 0.3
    """Largest relative change of brightness."""
    contrast: float = 0.3
    """Largest relative change of contrast."""
    saturation: float = 0.4
    """Largest relative change of saturation."""
    hue: float = 0.0
    """Largest turn around the grey axis, as a share of the circle."""
    mosaic: float = 0.0
    """Probability that four images are shown together."""
    pasted: float = 0.0
    """Probability that objects of another image are pasted (`pasting.py`)."""


def augment(
    image: LabelledImage,
    input_hw: tuple[int, int],
    config: AugmentConfig,
    rng: np.random.Generator,
) -> LabelledImage:
    """Return the network input and the objects that are still visible in it."""
    if config.crop and rng.random() < config.crop:
        image = _cropped(image, rng)
    scale = scale_to_fit(image.pixels.shape[:2], input_hw)
    size = _scaled(image, scale * np.exp(rng.uniform(*np.log(np.array(config.scale)))))
    jitter = rng.uniform(-config.shift, config.shift, 2) * input_hw[::-1]
    shifted = rng.random() < config.shifted
    room = np.array(input_hw[::-1]) - size  # negative where only a part of the image fits
    offset = rng.uniform(0, 1, 2) * (room if shifted else np.minimum(room, 0))
    offset = np.round(offset + jitter * shifted)
    canvas = _canvas(input_hw)
    _paste(canvas, image.pixels, size, offset, (0, 0, input_hw[1], input_hw[0]))
    shown = np.array([*offset, *(offset + size)])
    return _finish([_placed(canvas, image, size, offset, shown)], config, rng)


def largest_scale(
    image_hw: tuple[int, int], input_hw: tuple[int, int], config: AugmentConfig
) -> float:
    """Return the largest factor from image pixels to network pixels that may be drawn."""
    fit = scale_to_fit(image_hw, input_hw)
    if config.crop:
        smallest = max(1.0, CROP[0] / max(SHORT_SIDES) * min(image_hw))
        fit = max(fit, min(input_hw) / smallest)
    return fit * config.scale[1]


def mosaic(
    images: Sequence[LabelledImage],
    input_hw: tuple[int, int],
    config: AugmentConfig,
    rng: np.random.Generator,
) -> LabelledImage:
    """Return four images around a point as one network input, with their visible objects."""
    H, W = input_hw
    zoom = math.exp(rng.uniform(*np.log(np.array(config.scale))))
    middle = (rng.uniform(-0.5, 0.5, 2) * zoom + 0.5) * (W, H)
    middle += rng.uniform(-config.shift, config.shift, 2) * (W, H) * (rng.random() < config.shifted)
    cut_x, cut_y = (round(float(v)) for v in middle)
    canvas = _canvas(input_hw)
    parts = []
    for index, image in enumerate(images):
        size = _scaled(image, scale_to_fit(image.pixels.shape[:2], input_hw) * zoom)
        right, low = bool(index % 2), index >= 2
        offset = np.array([cut_x, cut_y], dtype=np.float64) - size * (not right, not low)
        region = (
            max(0, cut_x) if right else 0,
            max(0, cut_y) if low else 0,
            W if right else min(W, cut_x),
            H if low else min(H, cut_y),
        )
        _paste(canvas, image.pixels, size, offset, region)
        parts.append(_placed(canvas, image, size, offset, np.array(region, dtype=np.float64)))
    return _finish(parts, config, rng)


def _canvas(input_hw: tuple[int, int]) -> Image:
    canvas = np.empty((*input_hw, 3), dtype=np.uint8)
    canvas[:] = PAD_RGB
    return canvas


def _cropped(image: LabelledImage, rng: np.random.Generator) -> LabelledImage:
    """Return a crop as DETR takes it; boxes may leave it."""
    size = np.array(image.pixels.shape[1::-1])
    unit = float(size.min()) / rng.choice(SHORT_SIDES)  # pixels that a short side of 800 has here
    low, high = (np.minimum(size, share * unit) for share in CROP)
    sides = np.maximum(1, np.round(rng.uniform(low, high))).astype(int)
    left, top = (int(v) for v in np.floor(rng.uniform(0, 1, 2) * (size - sides + 1)))
    cut = image.pixels[top : top + sides[1], left : left + sides[0]]
    corner = np.array([left, top], dtype=np.float64)
    return replace(image, pixels=cut, boxes_xyxy=image.boxes_xyxy - np.tile(corner, 2))


def _scaled(image: LabelledImage, scale: float) -> npt.NDArray[np.int64]:
    """Return width and height in whole pixels after scaling."""
    before = np.array(image.pixels.shape[1::-1])
    size: npt.NDArray[np.int64] = np.maximum(1, np.round(before * scale)).astype(np.int64)
    return size


def _paste(
    canvas: Image,
    pixels: Image,
    size: npt.NDArray[np.int64],
    offset: npt.NDArray[np.float64],
    region: tuple[int, int, int, int],
) -> None:
    """Draw an image of another size, moved, into a region (x1, y1, x2, y2) of the canvas."""
    left, top = np.round(offset).astype(int)
    x1, y1 = max(left, region[0]), max(top, region[1])
    x2, y2 = min(left + int(size[0]), region[2]), min(top + int(size[1]), region[3])
    if x2 <= x1 or y2 <= y1:
        return
    pixels = resized(pixels, (int(size[1]), int(size[0])))
    canvas[y1:y2, x1:x2] = pixels[y1 - top : y2 - top, x1 - left : x2 - left]


def _placed(
    canvas: Image,
    image: LabelledImage,
    size: npt.NDArray[np.int64],
    offset: npt.NDArray[np.float64],
    shown: npt.NDArray[np.float64],
) -> LabelledImage:
    """Return the canvas with the objects of a pasted image, clipped to the part that is shown.

    `shown` is x1, y1, x2, y2 on the canvas. Objects that are hardly visible in it are dropped.
    """
    factors = size / np.array(image.pixels.shape[1::-1])
    placed = image.boxes_xyxy * np.tile(factors, 2) + np.tile(offset, 2)
    height, width = canvas.shape[:2]
    frame = np.concatenate([offset, offset + size])
    moved = replace(image, pixels=canvas, boxes_xyxy=placed, frame=frame)
    return seen_in(moved, np.clip(shown, 0, [width, height, width, height]))


def seen_in(image: LabelledImage, part_4: npt.NDArray[Any]) -> LabelledImage:
    """Return an image with its objects clipped to a part of it, without hardly visible ones."""
    boxes_N4 = image.boxes_xyxy
    clipped_N4 = np.clip(boxes_N4, np.tile(part_4[:2], 2), np.tile(part_4[2:], 2))
    sides = clipped_N4[:, 2:] - clipped_N4[:, :2]
    before = np.prod(boxes_N4[:, 2:] - boxes_N4[:, :2], axis=1)
    kept = (sides.min(axis=1, initial=np.inf) > MIN_SIDE_PX) & (
        sides.prod(axis=1) > MIN_VISIBLE * before
    )
    weights = None if image.weights is None else image.weights[kept]
    return replace(image, boxes_xyxy=clipped_N4[kept], labels=image.labels[kept], weights=weights)


def joined(pixels: Image, parts: Sequence[LabelledImage]) -> LabelledImage:
    """Return an image with the objects of all parts, which have their places in it."""
    return LabelledImage(
        pixels,
        np.concatenate([part.boxes_xyxy for part in parts]),
        np.concatenate([part.labels for part in parts]),
        joined_weights(parts),
    )


def _finish(
    parts: Sequence[LabelledImage], config: AugmentConfig, rng: np.random.Generator
) -> LabelledImage:
    """Join the objects of images on one canvas, flip and recolour it."""
    image = joined(parts[0].pixels, parts) if len(parts) > 1 else parts[0]
    for axis, chance in ((1, config.flip), (0, config.flip_vertical)):
        if chance and rng.random() < chance:
            image = _flipped(image, axis)
    pixels = recoloured(np.ascontiguousarray(image.pixels), config, rng)
    return replace(image, pixels=pixels, boxes_xyxy=image.boxes_xyxy.astype(np.float32))


def _flipped(image: LabelledImage, axis: int) -> LabelledImage:
    """Mirror an image left to right (axis 1) or top to bottom (axis 0)."""
    near, far = (0, 2) if axis == 1 else (1, 3)
    boxes, frame = image.boxes_xyxy.copy(), image.frame
    boxes[:, [near, far]] = image.pixels.shape[axis] - boxes[:, [far, near]]
    if frame is not None:
        frame = frame.copy()
        frame[[near, far]] = image.pixels.shape[axis] - frame[[near, far]]
    return replace(image, pixels=np.flip(image.pixels, axis), boxes_xyxy=boxes, frame=frame)


def recoloured(image: Image, config: AugmentConfig, rng: np.random.Generator) -> Image:
    """Change brightness, contrast, saturation and hue of pixels by one 3x4 matrix."""
    bright, contrast, saturation = (
        1 + rng.uniform(-strength, strength)
        for strength in (config.brightness, config.contrast, config.saturation)
    )
    mean = float(np.mean(cv2.mean(image)[:3])) * bright
    grey = np.full((3, 3), 1 / 3)
    colour = saturation * (np.eye(3) - grey)
    if config.hue:
        angle = 2 * math.pi * rng.uniform(-config.hue, config.hue)
        turn = math.sin(angle) / math.sqrt(3) * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
        colour = (math.cos(angle) * np.eye(3) + turn) @ colour
    matrix = np.column_stack([(grey + colour) * bright * contrast, [mean * (1 - contrast)] * 3])
    pixels: Image = cv2.transform(image, matrix).astype(np.uint8)
    return pixels
