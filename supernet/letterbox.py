"""Fits an image into the network input: resize keeping the ratio, pad right and bottom.

The one resize rule of training, evaluation, export checks and detection. Needs numpy and OpenCV
only; every bundle's `detect.py` carries this file's text.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
"""RGB pixels [height, width, 3]."""

PAD_RGB = (124, 116, 104)
"""ImageNet's mean colour: close to zero after normalisation."""

_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
"""How to decode a picture that many times smaller."""


def scale_to_fit(image_hw: tuple[int, int], input_hw: tuple[int, int]) -> float:
    """Return the factor from image pixels to network pixels."""
    return min(input_hw[0] / image_hw[0], input_hw[1] / image_hw[1])


def letterbox(image: Image, input_hw: tuple[int, int]) -> tuple[Image, float]:
    """Return the padded network input [height, width, 3] and the factor applied to the image."""
    height, width = image.shape[:2]
    scale = scale_to_fit((height, width), input_hw)
    new_h = min(input_hw[0], max(1, round(height * scale)))
    new_w = min(input_hw[1], max(1, round(width * scale)))
    canvas = np.empty((*input_hw, 3), dtype=np.uint8)
    canvas[:] = PAD_RGB
    if (new_h, new_w) == (height, width):
        canvas[:new_h, :new_w] = image
    else:
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        canvas[:new_h, :new_w] = cv2.resize(image, (new_w, new_h), interpolation=how)
    return canvas, scale


def boxes_to_image(boxes_xyxy: Any, scale: float, image_hw: tuple[int, int]) -> Any:
    """Map boxes [n, 4] from network pixels back to image pixels, clipped to the image."""
    limit = np.array([image_hw[1], image_hw[0]] * 2, dtype=np.float32)
    return np.clip(np.asarray(boxes_xyxy, dtype=np.float32) / scale, 0, limit)


def read_image(
    path: Path, expected_hw: tuple[int, int] | None = None, shrink: int = 1
) -> Image | None:
    """Decode an image file as RGB, or return None if it cannot be decoded.

    EXIF rotation is applied, unless only the unrotated pixels have the expected height and width
    (annotations of the stored image). `shrink` 2, 4 or 8 decodes that many times smaller, which is
    as many times quicker for JPEG files.
    """
    try:
        data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    except OSError:
        return None
    pixels = _decode(data, _FLAGS[shrink])
    if pixels is None or expected_hw is None:
        return pixels
    if not _has_size(pixels, expected_hw, shrink):
        stored = _decode(data, _FLAGS[shrink] | cv2.IMREAD_IGNORE_ORIENTATION)
        if stored is not None and _has_size(stored, expected_hw, shrink):
            return stored
    return pixels


def _has_size(image: Image, expected_hw: tuple[int, int], shrink: int) -> bool:
    return all(
        have in (side // shrink, -(-side // shrink))
        for have, side in zip(image.shape[:2], expected_hw, strict=True)
    )


def _decode(data: npt.NDArray[np.uint8], flags: int) -> Image | None:
    if data.size == 0:
        return None
    try:
        pixels = cv2.imdecode(data, flags)
    except cv2.error:
        return None
    return None if pixels is None else np.ascontiguousarray(pixels[:, :, ::-1]).astype(np.uint8)
