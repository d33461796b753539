"""Converts a user's image to RGB pixels: an array, a file, or a PIL image.

Needs numpy only, and PIL for PIL's images; every bundle's `detect.py` carries this file's text.
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from supernet.errors import DataError
from supernet.letterbox import Image, eight_bits, read_image, why_unread

PIL_WITHOUT_RANGE = ("I", "F")
"""Modes of PIL whose values have no upper limit, so that white is not defined."""


def as_pixels(image: Any) -> Image:
    """Return an image as RGB uint8 [height, width, 3]; raises `DataError` for anything else.

    The EXIF rotation of a file and of a PIL image is applied.
    """
    if isinstance(image, str | Path):
        pixels = read_image(Path(image))
        if pixels is None:
            why = why_unread(Path(image))
            if why:
                raise DataError(f"{image} cannot be used: {why}")
            raise DataError(f"{image} is no image that can be decoded")
        return pixels
    if isinstance(image, list | tuple):
        raise DataError(f"a list of {len(image)} was given: call detect for each image of it")
    if type(image).__module__.partition(".")[0] == "PIL":
        image = _from_pil(image)
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"a {type(image).__name__} was given: an RGB uint8 image [height, width, 3], a path "
            "or a PIL image is needed"
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise DataError(
            f"an RGB uint8 image [height, width, 3] is needed, got {image.dtype} {image.shape}"
        )
    if image.size == 0:
        raise DataError(f"an image without pixels was given: {image.shape}")
    return image


def _from_pil(image: Any) -> Any:
    """Return the pixels of a PIL image, which may not have been decoded yet."""
    if image.mode in PIL_WITHOUT_RANGE:
        raise DataError(f"a PIL image of mode {image.mode} was given: convert it to RGB first")
    try:
        whole_values = _cut_by_pil(image)
        if whole_values is not None:
            return whole_values
        turned = importlib.import_module("PIL.ImageOps").exif_transpose(image)
        if turned.mode.startswith("I;16"):  # PIL would cut off what is above 255
            values = np.asarray(turned).astype(np.uint16)
            return np.stack([eight_bits(values)] * 3, axis=-1)
        return np.asarray(turned.convert("RGB"), dtype=np.uint8)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"the PIL image cannot be decoded: {error}") from None


def _cut_by_pil(image: Any) -> Image | None:
    """Return the pixels of the file where PIL keeps only the high bytes of 16-bit colours.

    An image that was changed after it was opened is not its file any more: `DataError`.
    """
    name = getattr(image, "filename", "")
    if not isinstance(name, str) or not Path(name).is_file() or image.mode.startswith("I;16"):
        return None
    with importlib.import_module("PIL.Image").open(name) as again:
        if ";16" not in str(again.tile) or again.mode.startswith("I"):
            return None
        same = (image.mode, image.size, image.tell()) == (again.mode, again.size, 0)
        # What is not decoded yet cannot have been changed.
        if same and (getattr(image, "tile", None) or image.tobytes() == again.tobytes()):
            return read_image(Path(name))
    raise DataError(
        f"PIL kept only 8 of 16 bits of {name}: give its path in place of the PIL image"
    )
