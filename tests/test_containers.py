"""What a video's container says of its length."""

import struct
from pathlib import Path

import pytest

from deploy.edge.containers import has_true_count


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content) + 8) + kind + content


def write_mp4(path: Path, shown_s: int, title: bytes) -> Path:
    """Write an MP4 file of an index alone: its clock, an edit list, and a title."""
    clock = box(b"mvhd", bytes(12) + struct.pack(">II", 1000, 1000 * shown_s))
    edits = box(b"elst", struct.pack(">IIIII", 0, 1, 1000 * shown_s, 0, 0x10000))
    index = clock + box(b"trak", box(b"edts", edits)) + box(b"udta", box(b"\xa9nam", title))
    path.write_bytes(box(b"ftyp", b"isom") + box(b"moov", index))
    return path


@pytest.mark.parametrize(
    "title",
    [
        b"Edelst",
        b"elst" + struct.pack(">IIIII", 0, 1, 0, 0, 0),
        b"Edelsteine im Schwarzwald",
    ],
)
def test_a_title_is_no_edit_list(tmp_path: Path, title: bytes) -> None:
    """Its letters were read as the number of edits: it took minutes, or was an IndexError."""
    assert has_true_count(write_mp4(tmp_path / "whole.mp4", 10, title), 10.0)
    assert not has_true_count(write_mp4(tmp_path / "trimmed.mp4", 5, title), 10.0)
