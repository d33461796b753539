"""Small files that state huge images are refused before they are decoded."""

import resource
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from deploy.edge.pixels import as_pixels
from supernet.errors import DataError
from supernet.image_header import is_bomb, stated_pixels
from supernet.letterbox import read_image

KINDS = {
    "png": {}, "jpg": {}, "gif": {}, "bmp": {}, "tiff": {"compression": "tiff_lzw"},
    "webp": {}, "jp2": {}, "avif": {},
}  # fmt: skip


@pytest.mark.parametrize("kind", [*KINDS, "lossless.webp", "alpha.webp", "progressive.jpg"])
def test_headers_state_the_size(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    how = {"lossless": {"lossless": True}, "progressive": {"progressive": True}}
    mode = "RGBA" if kind.startswith("alpha") else "RGB"
    image = Image.new(mode, (301, 77), (9, 90, 200, 40)[: len(mode)])
    try:
        image.save(path, **KINDS.get(kind, how.get(kind.split(".")[0], {})))
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {kind}")
    assert stated_pixels(path.read_bytes()) == 301 * 77


@pytest.mark.parametrize("kind", [".jpg", ".png", ".bmp", ".webp", ".tiff", ".jp2", ".avif"])
def test_opencvs_files_state_the_size(kind: str) -> None:
    try:
        ok, data = cv2.imencode(kind, np.zeros((77, 301, 3), np.uint8))
    except cv2.error:
        ok = False
    if not ok:
        pytest.skip(f"this OpenCV writes no {kind}")
    assert stated_pixels(data.tobytes()) == 301 * 77


def test_no_header_raises() -> None:
    for start in (
        b"\x89PNG",
        b"\xff\xd8\xff\xff\xc0",
        b"RIFF" + b"x" * 8,
        b"II+\0",
        b"MM\0*",
        b"BM",
    ):
        for length in range(40):
            found = stated_pixels(start + bytes(length))
            assert found == 0 if length <= 10 else found >= 0


def test_a_bomb_has_many_pixels_for_each_byte() -> None:
    def png(height: int, width: int, length: int) -> bytes:
        head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height)
        return head + bytes(length - len(head))

    assert not is_bomb(png(8192, 8192, 100)), "at most 2^26 pixels: whatever its length"
    assert is_bomb(png(8192, 8193, 100))
    assert not is_bomb(png(8192, 8193, 8192 * 8193 // 64))
    assert is_bomb(png(8192, 8193, 8192 * 8193 // 64 - 1))


def test_a_bomb_is_named_and_not_decoded(tmp_path: Path) -> None:
    """Two hundred million black pixels in 200 kB."""
    path = tmp_path / "bomb.png"
    Image.new("1", (16_000, 12_500)).save(path)
    assert is_bomb(path.read_bytes())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert read_image(path) is None
    with pytest.raises(DataError, match=r"200000000 pixels in \d+ bytes .* decompression bomb"):
        as_pixels(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kB"
    Image.new("RGB", (300, 200)).save(path)
    assert read_image(path) is not None
