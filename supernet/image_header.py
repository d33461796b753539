"""What names and first bytes of image files say: which are read, their pixels, how AVIF turns them.

A file of some kilobytes may state an image that takes all memory (a decompression bomb).

OpenCV decodes AVIF as it is stored. The rotation (`irot`) and the mirror (`imir`) of the primary
image are properties in the file's `meta` box (ISO/IEC 23008-12, 6.5.10 and 6.5.12); an EXIF
orientation beside them does not count (ISO/IEC 23000-22, 7.3.10.1). Needs numpy only; every
bundle's `detect.py` carries this file's text.
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import numpy.typing as npt

IMAGE_SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif",
    ".jp2", ".ppm", ".pgm", ".pbm", ".pnm",
}  # fmt: skip
"""Files that `letterbox.read_image` decodes."""
SAFE_PIXELS = 2**26
"""Images of so many pixels are decoded whatever their file's length: 200 MB."""
MOST_PER_BYTE = 64
"""Larger ones may have so many pixels for each byte of the file. A photograph has less than 20."""
JPEG_ALONE = (*range(0xD0, 0xD8), 0x01)
"""Markers of JPEG without a length."""
JPEG_NO_FRAME = (0xC4, 0xC8, 0xCC)
"""Markers from C0 to CF that start no frame."""


def is_bomb(data: bytes) -> bool:
    """Return whether a file states far more pixels than an image of its length can have."""
    return stated_pixels(data) > max(SAFE_PIXELS, MOST_PER_BYTE * len(data))


def stated_pixels(data: bytes) -> int:
    """Return height times width of an image file; 0 where its header is not understood.

    Of BMP, PNG, GIF, JPEG, WebP, TIFF, JPEG 2000 and AVIF; others are not compressed.
    """
    with suppress(struct.error, IndexError, LookupError):
        for start, reader in IMAGE_HEADERS.items():
            if data.startswith(start):
                return reader(data)
        if data[4:8] == b"ftyp":
            return _box_sides(data, b"ispe", 8)
    return 0


def _sides_at(form: str, at: int) -> Callable[[bytes], int]:
    """Return a reader of two sides at a fixed place."""

    def read(data: bytes) -> int:
        width, height = (int(side) for side in struct.unpack_from(form, data, at))
        return abs(width * height)

    return read


def _jpeg_pixels(data: bytes) -> int:
    at = 2
    while True:
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0xFF or marker in JPEG_ALONE:
            at += 1 if marker == 0xFF or data[at] != 0xFF else 2
            continue
        if 0xC0 <= marker <= 0xCF and marker not in JPEG_NO_FRAME:
            return _sides_at(">HH", at + 5)(data)
        at += 2 + int(struct.unpack_from(">H", data, at + 2)[0])


def _webp_pixels(data: bytes) -> int:
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return int((width & 0x3FFF) * (height & 0x3FFF))
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return int(((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1))
    sides = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    return next(sides) * next(sides) if kind == b"VP8X" else 0


def _tiff_pixels(data: bytes) -> int:
    order = "<" if data.startswith(b"I") else ">"
    if struct.unpack_from(f"{order}H", data, 2)[0] == 43:  # BigTIFF
        start, (count_form, entry, value_at) = 8, ("Q", 20, 12)
        (at,) = struct.unpack_from(f"{order}Q", data, start)
    else:
        count_form, entry, value_at = "H", 12, 8
        (at,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}{count_form}", data, at)
    at += struct.calcsize(f"{order}{count_form}")
    sides: dict[int, int] = {}
    for place in range(at, min(at + count * entry, len(data)), entry):
        tag, kind = struct.unpack_from(f"{order}HH", data, place)
        form = {3: "H", 4: "I", 16: "Q"}.get(kind)
        if tag in (256, 257) and form:
            (sides[tag],) = struct.unpack_from(f"{order}{form}", data, place + value_at)
    return sides[256] * sides[257]


def _box_sides(data: bytes, kind: bytes, ahead: int) -> int:
    """Return the largest product of two sides in boxes of a kind, `ahead` bytes after its name."""
    found, at = 0, data.find(kind)
    while at >= 0:
        found = max(found, _sides_at(">II", at + ahead)(data))
        at = data.find(kind, at + 4)
    return found


IMAGE_HEADERS: dict[bytes, Callable[[bytes], int]] = {
    b"\x89PNG": _sides_at(">II", 16),
    b"GIF8": _sides_at("<HH", 6),
    b"BM": _sides_at("<ii", 18),
    b"\xff\xd8": _jpeg_pixels,
    b"RIFF": _webp_pixels,
    b"II": _tiff_pixels,
    b"MM": _tiff_pixels,
    b"\x00\x00\x00\x0cjP": lambda data: _box_sides(data, b"ihdr", 4),
    b"\xff\x4f\xff\x51": _sides_at(">II", 8),
}
"""Readers by the first bytes of a file."""

AVIF_BRANDS = (b"avif", b"avis")
AVIF_BOX_HEAD = 8
"""Bytes of a box's length and kind."""


def is_avif(data: bytes) -> bool:
    """Return whether a file's content begins as AVIF does."""
    length = int.from_bytes(data[:4], "big")
    brands = data[AVIF_BOX_HEAD:length]
    return data[4:8] == b"ftyp" and any(
        brands[start : start + 4] in AVIF_BRANDS for start in range(0, len(brands), 4)
    )


def turned_avif(pixels: npt.NDArray[np.uint8], data: bytes) -> npt.NDArray[np.uint8]:
    """Return the pixels [height, width, 3] of a file's primary image as they are displayed."""
    quarters, mirror = avif_orientation(data)
    seen = np.rot90(pixels, quarters)  # both count anticlockwise
    return np.ascontiguousarray(seen if mirror is None else np.flip(seen, mirror))


def avif_orientation(data: bytes) -> tuple[int, int | None]:
    """Return quarter turns anticlockwise, then the axis that is reversed: 0 rows, 1 columns, None.

    A file whose boxes cannot be followed is not turned.
    """
    try:
        return _orientation(data)
    except LookupError:
        return 0, None


def _orientation(data: bytes) -> tuple[int, int | None]:
    meta = dict(_avif_boxes(dict(_avif_boxes(data)).get(b"meta", b"")[4:]))
    item_size = 4 if meta[b"pitm"][0] else 2
    primary = meta[b"pitm"][4 : 4 + item_size]
    parts = dict(_avif_boxes(meta[b"iprp"]))
    properties = list(_avif_boxes(parts[b"ipco"]))
    quarters, mirror = 0, None
    for number in _property_numbers(parts[b"ipma"], int.from_bytes(primary, "big")):
        kind, content = properties[number - 1]
        if kind == b"irot":
            quarters = content[0] & 3
        elif kind == b"imir":
            mirror = content[0] & 1
    return quarters, mirror


def _avif_boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and content of each box; one that reaches beyond the data is the last."""
    start = 0
    while start + AVIF_BOX_HEAD <= len(data):
        length = int.from_bytes(data[start : start + 4], "big")
        head = AVIF_BOX_HEAD
        if length == 1:  # the length is a long
            length, head = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        end = start + length if length >= head else len(data)
        yield data[start + 4 : start + 8], data[start + head : end]
        start = end


def _property_numbers(ipma: bytes, item: int) -> Iterator[int]:
    """Yield the numbers, from 1, of the properties of an item."""
    item_size, wide = (4 if ipma[0] else 2), bool(ipma[3] & 1)
    at = 8
    for _ in range(int.from_bytes(ipma[4:8], "big")):
        owner = int.from_bytes(ipma[at : at + item_size], "big")
        count, at = ipma[at + item_size], at + item_size + 1
        for _ in range(count):
            number = (ipma[at] << 8 | ipma[at + 1]) & 0x7FFF if wide else ipma[at] & 0x7F
            at += 2 if wide else 1
            if owner == item and number:
                yield number
