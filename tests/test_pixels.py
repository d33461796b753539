"""Images as Python programs have them."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as PilImage

from deploy.edge.pixels import as_pixels
from supernet.errors import DataError
from supernet.letterbox import letterbox


def test_images_as_python_gives_them(tmp_path: Path) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20] = (200, 10, 10)
    path = tmp_path / "a.png"
    PilImage.fromarray(pixels).save(path)
    for given in (pixels, path, str(path), PilImage.open(path), PilImage.open(path).quantize(8)):
        assert np.abs(as_pixels(given).astype(int) - pixels).max() <= 2
    turned = tmp_path / "b.jpg"
    exif = PilImage.Exif()
    exif[274] = 6  # rotated by 90 degrees
    PilImage.fromarray(pixels).save(turned, exif=exif)
    assert as_pixels(PilImage.open(turned)).shape == as_pixels(turned).shape == (60, 40, 3)
    for wrong, message in (
        ([pixels, pixels], "a list of 2"),
        (None, "a NoneType was given"),
        (np.zeros((0, 0, 3), np.uint8), "without pixels"),
        (np.zeros((0, 5, 3), np.uint8), "without pixels"),
        (tmp_path / "absent.jpg", "no image that can be decoded"),
        (pixels.astype(np.float32), "got float32"),
        (pixels[:, :, 0], r"got uint8 \(40, 60\)"),
        (np.zeros((40, 60, 4), np.uint8), r"got uint8 \(40, 60, 4\)"),
        (pixels[None], r"got uint8 \(1, 40, 60, 3\)"),
        (pixels.astype(bool), "got bool"),
        (pixels.astype(object), "got object"),
        (np.zeros(0), r"got float64 \(0,\)"),
        (torch.from_numpy(pixels), "a Tensor was given"),
        (b"bytes", "a bytes was given"),
        ([], "a list of 0"),
        (tmp_path, "no image that can be decoded"),
        (PilImage.new("RGB", (0, 0)), "without pixels"),
        (PilImage.new("F", (4, 4)), "mode F .* convert it to RGB"),
        (PilImage.new("I", (4, 4)), "mode I .* convert it to RGB"),
        (PilImage.open(io.BytesIO(path.read_bytes()[:60])), "PIL image cannot be decoded"),
    ):
        with pytest.raises(DataError, match=message) as raised:
            as_pixels(wrong)
        assert "\n" not in str(raised.value)


def test_arrays_as_views_and_pil_in_every_mode(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    kept = pixels.copy()
    kept.flags.writeable = False
    for view in (pixels[:, :, ::-1], np.rot90(pixels), pixels[::2, ::2], kept):
        whole = np.ascontiguousarray(view)
        assert np.array_equal(
            letterbox(as_pixels(view), (32, 48))[0], letterbox(whole, (32, 48))[0]
        )
    grey = np.repeat(pixels[:, :, :1], 3, axis=2)
    for mode, expected in (("L", grey), ("LA", grey), ("RGBA", pixels), ("CMYK", pixels)):
        source = PilImage.fromarray(expected if expected is pixels else expected[:, :, 0])
        assert np.abs(as_pixels(source.convert(mode)).astype(int) - expected).max() <= 1
    deep = tmp_path / "deep.png"
    cv2.imwrite(str(deep), np.tile(np.linspace(0, 65535, 60).astype(np.uint16), (40, 1)))
    with PilImage.open(deep) as opened:
        assert opened.mode == "I;16"
        assert np.array_equal(as_pixels(opened), as_pixels(deep)), "not cut off at 255"
