"""Files that options name: what of them HEAT wrote itself, and may replace."""

import json
import zipfile
from pathlib import Path

from latency_tables.probe.program import UNREADABLE

DRAWN_BY = "HEAT"
"""Creator in the metadata of every SVG."""
SVG_HEAD_BYTES = 4096
"""The metadata is within."""
RESULT_KEYS = (
    {"images", "detections", "latency_ms"},
    {"source", "frames", "dropped", "broken", "ms"},
)
"""Of the result of `heat detect` on images, and on a video."""


def is_drawing(path: Path) -> bool:
    """Return whether a file is an SVG that HEAT drew."""
    with path.open("rb") as stream:
        head = stream.read(SVG_HEAD_BYTES)
    return b"<svg" in head and f"<dc:title>{DRAWN_BY}</dc:title>".encode() in head


def is_result(path: Path) -> bool:
    """Return whether a file holds the JSON of `heat detect`; `ValueError` where it is no JSON."""
    found = json.loads(path.read_bytes())
    if not isinstance(found, dict):
        return False
    if found.keys() == {"videos"}:
        videos = found["videos"]
        return isinstance(videos, list) and all(
            isinstance(video, dict) and RESULT_KEYS[1] <= video.keys() for video in videos
        )
    return any(keys <= found.keys() for keys in RESULT_KEYS)


def is_pack(path: Path) -> bool:
    """Return whether a file is a pack of `heat profile --pack`."""
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = json.loads(archive.read("manifest.json"))
    except UNREADABLE:
        return False
    return isinstance(manifest, dict) and {"probe", "pack", "plan"} <= manifest.keys()
