"""Rotates and mirrors the pixels of an AVIF file; OpenCV decodes them as they are stored.

The rotation (`irot`) and the mirror (`imir`) of the primary image are properties in the file's
`meta` box (ISO/IEC 23008-12, 6.5.10 and 6.5.12); an EXIF orientation beside them does not count
(ISO/IEC 23000-22, 7.3.10.1). Needs numpy only; every bundle's `detect.py` carries this file's text.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

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
