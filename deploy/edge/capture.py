"""Opens video files, cameras and streams, and reads their frames with the time of each.

Needs numpy and OpenCV only; every bundle's `detect.py` carries this file's text.
"""

import math
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from supernet.errors import DataError, masked
from supernet.letterbox import Image

from .containers import has_true_count, is_cut_off
from .sources import is_live, local_name

PEEKED = 24
"""Frames from which the rate of a file is read."""
CAMERA_DIGITS = 9
"""OpenCV numbers cameras by C's int."""
SAME_RATE = 0.02
"""Share by which a header's frame rate may differ from that of the time stamps."""

SEVERAL_SUFFIXES = {".png", ".webp", ".tif", ".tiff", ".avif"}
"""Images that may be several: animated, or of pages. GIFs are read as videos."""


class Source:
    """A camera (its number), a stream (a URL), or a video file, read frame by frame.

    The rate of a file and its missing frames are found from time stamps: containers without an
    index (.webm, .mkv, .ts) have no true number of frames, and with sound or pauses not even a
    true length.
    """

    time_s = 0.0
    """Time stamp of the frame that was read last."""

    def __init__(self, name: str) -> None:
        """Open it; raises `DataError` where OpenCV cannot."""
        self.name = name = local_name(name)
        self.live = is_live(name)
        if not self.live and not Path(name).exists():
            raise DataError(f"no video at {name}")
        self._capture = _opened(name)
        rate = float(self._capture.get(cv2.CAP_PROP_FPS) or 0.0)
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.frames = 0 if self.live else max(0, int(count))
        self._length_s = self.frames / rate if rate > 0 else 0.0
        # A pipe cannot be opened twice.
        self._file = None if self.live or not Path(name).is_file() else Path(name)
        try:
            self.fps = rate if self._file is None else stamped_fps(name, rate)
        except BaseException:
            self.close()
            raise
        self._read, self._gaps = 0, 0

    def read(self) -> Image | None:
        """Return the next frame as RGB, None where it cannot be read."""
        ok, pixels = self._capture.read()
        if not ok or pixels is None:
            return None
        self._stamp(self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3)
        self._read += 1
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), dtype=np.uint8)

    def _stamp(self, time_s: float) -> None:
        """Note a frame's time; some containers have none for their last frames."""
        step_s = 1.0 / self.fps if self.fps > 0 else 0.04
        if self._read == 0:
            self.time_s = time_s if math.isfinite(time_s) else 0.0
            return
        if not time_s > self.time_s:
            time_s = self.time_s + step_s
        self._gaps += max(0, round((time_s - self.time_s) / step_s) - 1)
        self.time_s = time_s

    def missing(self, known: int) -> int:
        """Return how many frames of a file could not be decoded, beside the `known` ones.

        A count in a header is trusted where the container has an index of its frames or is
        shorter than it states, and only as far as there is time for so many frames.
        """
        if self._file is None:
            return 0
        cut = is_cut_off(self._file)
        if not (cut or has_true_count(self._file, self._length_s)):
            return 0
        after = max(0, round((self._length_s - self.time_s) * self.fps) - 1)
        lost = max(0, min(self.frames - known, self._gaps + after))
        return max(1, lost) if cut else lost

    def close(self) -> None:
        """Release the file or the camera."""
        self._capture.release()


def is_animated(path: Path) -> bool:
    """Return whether a GIF file has more than one image."""
    capture = cv2.VideoCapture(str(path.absolute()))
    moves = capture.grab() and capture.grab()
    capture.release()
    return bool(moves)


def image_count(path: Path) -> int:
    """Return how many images a file has, of which `read_image` takes the first."""
    if path.suffix.lower() not in SEVERAL_SUFFIXES:
        return 1
    try:
        return int(cv2.imcount(str(path.absolute()), cv2.IMREAD_REDUCED_GRAYSCALE_8))
    except cv2.error:
        return 1


def _opened(name: str) -> Any:
    live = is_live(name)
    camera = live and name.isdecimal()
    if camera and len(name) > CAMERA_DIGITS:
        raise DataError(f"no camera {name}: give its number, 0 for the first")
    # FFmpeg takes 12:30.mp4 for a protocol called 12.
    address = name if live else str(Path(name).absolute())
    capture = cv2.VideoCapture(int(name) if camera else address)
    if not capture.isOpened():
        what = f"camera {name}" if camera else masked(name)
        raise DataError(f"OpenCV cannot open {what}: is it there, and is it a video?")
    return capture


def stamped_fps(name: str, stated: float) -> float:
    """Return the frame rate of a file by the time stamps of its first frames.

    `stated` is the header's: right to the last digit where it agrees, and 1000 where a file has no
    rate. Pauses do not count.
    """
    capture = _opened(name)
    stamps = []
    for _ in range(PEEKED):
        if not capture.grab():
            break
        stamps.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3)
    capture.release()
    steps = [b - a for a, b in pairwise(stamps) if b > a]
    if not steps:
        return stated if 0 < stated < 1000 else 0.0
    usual = statistics.median_low(steps)
    steady = [step for step in steps if 0.5 * usual < step < 1.5 * usual]
    fps = len(steady) / sum(steady)
    return stated if abs(stated / fps - 1) <= SAME_RATE else round(fps, 3)
