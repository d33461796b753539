"""Decoding, orientation and the letterbox against Pillow, which shares no code with OpenCV's."""

from math import gcd
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps

from deploy.edge.pixels import as_pixels
from supernet.letterbox import PAD_RGB, boxes_to_image, letterbox, read_image, resized

LOSSLESS = {"png": {}, "tiff": {}, "webp": {"lossless": True}}
JPEG_LEVELS = 4
"""Two decoders of one JPEG file differ by their inverse transforms and how they enlarge colours."""


def drawn(height: int, width: int, seed: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return an image without a symmetry, smooth enough for JPEG."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 // height, x * 255 // width, (2 * y + x) * 80 // width], 2).astype(
        np.uint8
    )


def save(path: Path, pixels: npt.NDArray[np.uint8], orientation: int, **how: object) -> None:
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif, **how)


@pytest.mark.parametrize("suffix", [*LOSSLESS, "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_pillows(suffix: str, orientation: int, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    how = LOSSLESS.get(suffix, {"quality": 95, "subsampling": 0})
    save(path, smooth(40, 60), orientation, **how)
    with Image.open(path) as opened:
        stored = np.asarray(opened.convert("RGB"), np.int16)
        seen = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"), np.int16)
    allowed = JPEG_LEVELS if suffix == "jpg" else 0
    height, width = seen.shape[:2]
    found = [
        (read_image(path), seen),
        (read_image(path, (height, width)), seen),
        (read_image(path, turned=False), stored),
        (as_pixels(path), seen),
    ]
    for pixels, expected in found:
        assert pixels is not None and pixels.shape == expected.shape
        assert np.abs(pixels - expected).max() <= allowed
    with Image.open(path) as opened:
        assert np.abs(as_pixels(opened) - seen).max() == 0
    half = read_image(path, shrink=2)
    assert half is not None and half.shape == (height // 2, width // 2, 3)
    means = seen.reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3))
    assert np.abs(half - means).max() <= JPEG_LEVELS


def shrunk(values: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """Shrink the first axis by exact means of areas: repeat each row, take means, in Pillow."""
    times = side // gcd(side, len(values))
    rows, columns = values.shape
    tall = Image.fromarray(values).resize((columns, rows * times), Image.Resampling.NEAREST)
    return np.asarray(tall.reduce((1, rows * times // side)), np.float32)


def by_pillow(image: npt.NDArray[np.uint8], hw: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Resize in Pillow: each side is shrunk by means of areas or enlarged linearly."""
    channels = []
    for channel in np.moveaxis(image.astype(np.float32), 2, 0):
        values = channel
        for side in hw:  # the width is the height of the transposed
            if side < len(values):
                values = shrunk(values, side)
            values = np.ascontiguousarray(values.T)
        linear = Image.fromarray(values).resize(hw[::-1], Image.Resampling.BILINEAR)
        channels.append(np.asarray(linear))
    return np.stack(channels, 2)


@pytest.mark.parametrize("seed", range(60))
def test_resizing_is_pillows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width, *new = (int(side) for side in rng.integers(1, 90, 4))
    if seed % 4 == 0:
        new = [max(1, height // 3), max(1, width // 3)]
    image = drawn(height, width, seed)
    found = resized(image, (new[0], new[1]))
    assert found.shape == (*new, 3) and found.dtype == np.uint8
    both = (new[0] < height and new[1] > width) or (new[0] > height and new[1] < width)
    allowed = 1.25 if both else 1.0  # shrinking and enlarging round once each
    assert np.abs(found - by_pillow(image, (new[0], new[1]))).max() <= allowed


@pytest.mark.parametrize("seed", range(40))
def test_the_letterbox_is_pillows(seed: int) -> None:
    """The ratio is kept, the image is at the top left, the rest is ImageNet's mean colour."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(8, 140, 2))
    size = int(rng.integers(1, 4)) * 32, int(rng.integers(1, 4)) * 32
    image = drawn(height, width, seed)
    canvas, scale = letterbox(image, size)
    assert scale == pytest.approx(min(size[0] / height, size[1] / width))
    with Image.fromarray(image) as opened:  # Pillow's own rule for the size
        inside = ImageOps.contain(opened, size[::-1]).size[::-1]
    assert all(abs(have - side * scale) <= 0.5 or have == 1 for have, side in
               zip(inside, (height, width), strict=True))  # fmt: skip
    expected = np.empty((*size, 3), np.float32)
    expected[:] = PAD_RGB
    expected[: inside[0], : inside[1]] = by_pillow(image, inside)
    assert np.abs(canvas - expected).max() <= 1.0
    corner = boxes_to_image([[0, 0, inside[1], inside[0]]], scale, (height, width))[0]
    assert corner == pytest.approx([0, 0, width, height], abs=1e-3)
