"""Training augmentation: one random affine map into the network input, flip, colour."""

from dataclasses import dataclass

import cv2
import numpy as np

from .coco import Boxes
from .letterbox import PAD_RGB, Image, scale_to_fit

MIN_VISIBLE = 0.25
"""A box of which less is left inside the picture is dropped."""
MIN_SIDE_PX = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """How strongly training pictures are changed."""

    flip: float = 0.5
    """Probability of a left-right flip."""
    scale: tuple[float, float] = (0.7, 1.4)
    """Zoom range relative to the letterbox."""
    shift: float = 0.15
    """Largest shift of the picture, as a share of the input side."""
    brightness: float = 0.3
    """Largest relative change of brightness."""
    contrast: float = 0.3
    """Largest relative change of contrast."""
    saturation: float = 0.4
    """Largest relative change of saturation."""


def augment(
    image: Image,
    boxes_xyxy: Boxes,
    input_hw: tuple[int, int],
    config: AugmentConfig,
    rng: np.random.Generator,
) -> tuple[Image, Boxes, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Return the network input, the boxes in its pixels, and which of the boxes were kept."""
    height, width = image.shape[:2]
    scale = scale_to_fit((height, width), input_hw) * np.exp(
        rng.uniform(*np.log(np.array(config.scale)))
    )
    slack = np.array([input_hw[1] - width * scale, input_hw[0] - height * scale])
    jitter = rng.uniform(-config.shift, config.shift, 2) * input_hw[::-1]
    offset = rng.uniform(0, 1, 2) * slack + jitter
    matrix = np.array([[scale, 0, offset[0]], [0, scale, offset[1]]], dtype=np.float64)
    boxes = boxes_xyxy * np.float32(scale) + np.tile(offset, 2).astype(np.float32)
    if rng.random() < config.flip:
        matrix = np.array([[-1, 0, input_hw[1]], [0, 1, 0]]) @ np.vstack([matrix, [0, 0, 1]])
        boxes[:, [0, 2]] = input_hw[1] - boxes[:, [2, 0]]
        matrix[0, 2] -= 1  # pixel centres: column c goes to W - 1 - c
    warped = cv2.warpAffine(
        image, matrix, input_hw[::-1], flags=cv2.INTER_LINEAR, borderValue=PAD_RGB
    ).astype(np.uint8)
    limit = np.array([input_hw[1], input_hw[0]] * 2, dtype=np.float32)
    clipped = np.clip(boxes, 0, limit)
    sides = clipped[:, 2:] - clipped[:, :2]
    before = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    kept = (sides.min(axis=1, initial=np.inf) > MIN_SIDE_PX) & (
        sides.prod(axis=1) > MIN_VISIBLE * before
    )
    return _colour(warped, config, rng), clipped[kept].astype(np.float32), kept


def _colour(image: Image, config: AugmentConfig, rng: np.random.Generator) -> Image:
    x = image.astype(np.float32)
    x *= 1 + rng.uniform(-config.brightness, config.brightness)
    mean = x.mean()
    x = (x - mean) * (1 + rng.uniform(-config.contrast, config.contrast)) + mean
    grey = x.mean(axis=2, keepdims=True)
    x = grey + (x - grey) * (1 + rng.uniform(-config.saturation, config.saturation))
    pixels: Image = np.clip(x, 0, 255).astype(np.uint8)
    return pixels
