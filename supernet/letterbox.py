"""Decodes an image, and fits it into the network input: resize keeping the ratio, pad.

`resized` is the one resize rule of training, evaluation, export checks and detection, `read_image`
the one decoder. Needs numpy and OpenCV only; every bundle's `detect.py` carries this file's text.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from .errors import DataError
from .image_header import is_avif, is_bomb, stated_pixels, turned_avif

Image = npt.NDArray[np.uint8]
"""RGB pixels [height, width, 3]."""

PAD_RGB = (124, 116, 104)
"""ImageNet's mean colour: close to zero after normalisation."""

_REDUCED = {
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
"""OpenCV's flags that decode a JPEG image so many times smaller."""
AVIF_HEAD = 256
"""Bytes that hold the first box of an AVIF file, which names its kind."""
VALUE_BITS = (8, 10, 12, 14, 16)
"""Bit depths that the values of a 16-bit file may have."""


def scale_to_fit(image_hw: tuple[int, int], input_hw: tuple[int, int]) -> float:
    """Return the factor from image pixels to network pixels."""
    return min(input_hw[0] / image_hw[0], input_hw[1] / image_hw[1])


def letterbox(image: Image, input_hw: tuple[int, int]) -> tuple[Image, float]:
    """Return the padded network input [height, width, 3] and the factor applied to the image."""
    height, width = image.shape[:2]
    if not height or not width:
        raise DataError(f"the image is empty: {height}x{width} pixels")
    scale = scale_to_fit((height, width), input_hw)
    new_h, new_w = _scaled((height, width), scale)
    canvas = np.empty((*input_hw, 3), dtype=np.uint8)
    canvas[:] = PAD_RGB
    canvas[:new_h, :new_w] = resized(image, (new_h, new_w))
    return canvas, scale


def resized(image: Image, new_hw: tuple[int, int]) -> Image:
    """Return the image in another size: shrunk by the mean of areas, enlarged linearly.

    Each side is treated by itself, so that an image that becomes wider and lower does not alias.
    """
    height, width = image.shape[:2]
    low = min(new_hw[0], height), min(new_hw[1], width)
    pixels: Any = image
    if low != (height, width):
        pixels = cv2.resize(pixels, low[::-1], interpolation=cv2.INTER_AREA)
    if low != tuple(new_hw):
        pixels = cv2.resize(pixels, new_hw[::-1], interpolation=cv2.INTER_LINEAR)
    found: Image = pixels
    return found


def _scaled(image_hw: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return the whole numbers of network pixels that an image is resized to."""
    return max(1, round(image_hw[0] * scale)), max(1, round(image_hw[1] * scale))


def box_factors(image_hw: tuple[int, int], scale: float) -> npt.NDArray[np.float32]:
    """Return the factors of x0, y0, x1, y1 into the input: those of the rounded sides."""
    height, width = _scaled(image_hw, scale)
    return np.array([width / image_hw[1], height / image_hw[0]] * 2, dtype=np.float32)


def boxes_to_input(
    boxes_xyxy: npt.ArrayLike, scale: float, image_hw: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Map boxes [n, 4] from image pixels to network pixels."""
    boxes: npt.NDArray[np.float32]
    boxes = np.asarray(boxes_xyxy, dtype=np.float32) * box_factors(image_hw, scale)
    return boxes


def boxes_to_image(
    boxes_xyxy: npt.ArrayLike, scale: float, image_hw: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Map boxes [n, 4] from network pixels back to image pixels, clipped to the image."""
    limit = np.array([image_hw[1], image_hw[0]] * 2, dtype=np.float32)
    boxes: npt.NDArray[np.float32]
    boxes = np.asarray(boxes_xyxy, dtype=np.float32) / box_factors(image_hw, scale)
    return np.clip(boxes, 0, limit)


def read_image(
    path: Path,
    expected_hw: tuple[int, int] | None = None,
    shrink: int = 1,
    *,
    turned: bool = True,
) -> Image | None:
    """Decode an image file as RGB, or return None if it cannot be decoded.

    The rotation of EXIF, and of an AVIF file, is applied, unless only the unrotated pixels have the
    expected height and width (annotations of the stored image); without `turned` it never is. An
    image of yet another size is resized to the expected one: its boxes are shares of the annotated
    size. Values of 16-bit files are scaled by the bits that they use. `shrink` 2, 4 or 8
    returns an image that many times smaller, which saves decoding time for JPEG files.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if expected_hw and shrink > 1 and 0 < abs(expected_hw[0] - expected_hw[1]) < shrink:
        # Shrunk, the image may have the same size turned and as it is stored.
        pixels, stored = (_decode(data, shrink, way) for way in (turned, False))
        if pixels is None or stored is None or np.array_equal(pixels, stored):
            return pixels
        whole = read_image(path, expected_hw, turned=turned)
        return None if whole is None else _reduced(whole, shrink)
    pixels = _decode(data, shrink, turned)
    if pixels is None or expected_hw is None or _has_size(pixels, expected_hw, shrink):
        return pixels
    stored = _decode(data, shrink, False)
    if stored is not None and _has_size(stored, expected_hw, shrink):
        return stored
    height, width = (max(1, -(-side // shrink)) for side in expected_hw)
    return resized(pixels, (height, width))


def _has_size(image: Image, expected_hw: tuple[int, int], shrink: int) -> bool:
    return all(
        have in (side // shrink, -(-side // shrink))
        for have, side in zip(image.shape[:2], expected_hw, strict=True)
    )


def _decode(content: bytes, shrink: int, turned: bool) -> Image | None:
    if not content or is_bomb(content):
        return None
    data = np.frombuffer(content, dtype=np.uint8)
    jpeg = content.startswith(b"\xff\xd8")
    avif = is_avif(content[:AVIF_HEAD])
    orientation = 0 if turned and not avif else cv2.IMREAD_IGNORE_ORIENTATION
    try:
        if jpeg and shrink > 1:
            return _rgb(cv2.imdecode(data, _REDUCED[shrink] | orientation))
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | orientation)
        if pixels is not None and pixels.dtype in (np.uint16, np.int16):
            pixels = eight_bits(pixels)
        elif pixels is not None and pixels.dtype != np.uint8:
            pixels = cv2.imdecode(data, cv2.IMREAD_COLOR | orientation)
    except cv2.error:
        return None
    image = _rgb(pixels)
    if image is not None and avif and turned:
        image = turned_avif(image, content)
    if image is None or shrink == 1:
        return image
    # OpenCV reduces other formats than JPEG by picking pixels.
    return _reduced(image, shrink)


def _reduced(image: Image, shrink: int) -> Image:
    height, width = (max(1, -(-side // shrink)) for side in image.shape[:2])
    return resized(image, (height, width))


def eight_bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return 16-bit values scaled by the bits that they use; negative ones are black."""
    signed = values.dtype == np.int16
    values = np.maximum(values, 0) if signed else values
    used = int(values.max(initial=0)).bit_length()
    bits = next(depth for depth in VALUE_BITS if used <= depth)
    bits = min(bits, 15) if signed else bits
    return np.asarray(cv2.convertScaleAbs(values, alpha=255 / ((1 << bits) - 1)), dtype=np.uint8)


def why_unread(path: Path) -> str | None:
    """Return why `read_image` does not decode an image, where that is known."""
    try:
        content = path.read_bytes()
        if is_bomb(content):
            return (
                f"{stated_pixels(content)} pixels in {len(content)} bytes are taken for a "
                "decompression bomb: save it smaller, or with less compression"
            )
        data = np.frombuffer(content, dtype=np.uint8)
        pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if content else None
    except (OSError, cv2.error):
        return None
    if pixels is None or pixels.dtype in (np.uint8, np.uint16, np.int16):
        return None
    return f"its values are {pixels.dtype}, whose white is not stated: save it with 8 or 16 bits"


def _rgb(pixels: Any) -> Image | None:
    return None if pixels is None else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8)
