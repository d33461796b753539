"""Reads from a video file's container whether it lists all frames and is complete.

Needs Python's own library only; every bundle's `detect.py` carries this file's text.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

ISO_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"}
TRIMMED_S = 0.1
"""Length by which an edit list may be shorter for other reasons than trimming."""
SMALLEST_BOX = 8
"""Bytes of a box that holds nothing: its length and its kind."""
LARGEST_INDEX = 2**26
EBML_HEAD, EBML_SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def has_true_count(path: Path, length_s: float) -> bool:
    """Return whether a file lists every frame, and shows all of them (.mp4, .mov, .3gp).

    `length_s` is the length of all its frames: where an edit list shows less, the file was trimmed
    without its frames being removed, as phones do.
    """
    with path.open("rb") as stream:
        if stream.read(8)[4:] not in ISO_BOXES:
            return False
        moov = _iso_index(stream, path.stat().st_size)
    return _edited_s(moov) >= length_s - TRIMMED_S


def _iso_index(stream: BinaryIO, size: int) -> bytes:
    """Return the box with a file's index, or nothing where it has none, or one too large."""
    for start, kind, length in _iso_boxes(stream, size):
        if kind == b"moov" and SMALLEST_BOX <= length <= LARGEST_INDEX:
            stream.seek(start)
            return stream.read(length)
    return b""


def _iso_boxes(stream: BinaryIO, size: int) -> Iterator[tuple[int, bytes, int]]:
    """Yield start, kind and length of each box; one that is too short to be a box is the last."""
    start = 0
    while start + SMALLEST_BOX <= size:
        stream.seek(start)
        head = stream.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:  # a 64-bit length follows
            length = int.from_bytes(head[8:16], "big")
        yield start, head[4:8], length
        if length < SMALLEST_BOX:
            return
        start += length


def _edited_s(moov: bytes) -> float:
    """Return the shortest length that an edit list shows; infinity without any."""
    header = moov.find(b"mvhd")
    if header < 0:
        return math.inf
    long = any(moov[header + 4 : header + 5])
    clock = header + (24 if long else 16)  # version 1 has 64-bit dates before it
    ticks = int.from_bytes(moov[clock : clock + 4], "big") or 1
    shortest = math.inf
    for at, count, word, entry in _edit_lists(moov):
        shown = 0
        for place in range(at, at + count * entry, entry):
            begins = int.from_bytes(moov[place + word : place + 2 * word], "big", signed=True)
            if begins >= 0:  # -1 is an empty edit
                shown += int.from_bytes(moov[place : place + word], "big")
        shortest = min(shortest, shown / ticks)
    return shortest


def _edit_lists(moov: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield start and number of the entries of each edit list, and bytes of a number and an entry.

    A title may hold the same four letters: a list's length is what its entries need.
    """
    at = moov.find(b"elst", 4)
    while at >= 0:
        word, entry = (8, 20) if any(moov[at + 4 : at + 5]) else (4, 12)
        count = int.from_bytes(moov[at + 8 : at + 12], "big")
        length = 16 + count * entry
        if int.from_bytes(moov[at - 4 : at], "big") == length <= len(moov) - at + 4:
            yield at + 12, count, word, entry
        at = moov.find(b"elst", at + 1)


def is_cut_off(path: Path) -> bool:
    """Return whether a file is shorter than its container states (MP4, AVI, MKV and WebM)."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(12)
        if head[:4] == b"RIFF":
            return int.from_bytes(head[4:8], "little") + 8 > size
        if head[:4] == EBML_HEAD:
            return _ebml_end(stream) > size
        if head[4:8] in ISO_BOXES:
            return _iso_end(stream, size) > size
    return False


def _iso_end(stream: BinaryIO, size: int) -> int:
    """Return where the last box ends; a length of 0 extends to the end of the file."""
    end = 0
    for start, _, length in _iso_boxes(stream, size):
        end = start + length if length >= SMALLEST_BOX else size
    return end


def _ebml_end(stream: BinaryIO) -> int:
    """Return where the segment ends, or 0 where it was written without its length."""
    stream.seek(4)
    length, _ = _variable_length(stream)
    stream.seek(length, 1)
    if stream.read(4) != EBML_SEGMENT:
        return 0
    length, known = _variable_length(stream)
    return stream.tell() + length if known else 0


def _variable_length(stream: BinaryIO) -> tuple[int, bool]:
    """Read an EBML number; also return whether it is one: all bits set is an unknown length."""
    first = stream.read(1)
    if not first or not first[0]:
        return 0, False
    extra = 8 - first[0].bit_length()
    value = first[0] & ((1 << (7 - extra)) - 1)
    value = value << (8 * extra) | int.from_bytes(stream.read(extra), "big")
    return value, value != (1 << 7 * (extra + 1)) - 1
