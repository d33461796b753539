"""Records a video or a camera with its detections, and shows it while it runs.

Needs numpy and OpenCV only; every bundle's `detect.py` carries this file's text.
"""

import json
import math
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from supernet.errors import DataError, UserError
from supernet.letterbox import Image

from .records import FrameRecord
from .saving import MADE_BY_HEAT, check_free, partial_path, recorded

WINDOW = "heat detect"
USUAL_FPS = 25.0
"""Rate of a recording whose source has none."""
MAX_TIMEBASE = 65535
"""Largest denominator of a frame rate in MPEG-4."""
PAUSE_FRAMES = 1.5
"""Frames by which time stamps must be ahead; MPEG's are one off now and then."""
LOOK_EVERY = 25
"""Frames between two checks of the free space on the disk."""
LEAST_FREE_BYTES = 2**16
"""With less free space the disk counts as full."""
LONGEST_PAUSE_S = 60.0
"""Longest time for which a frame is repeated in the recording."""


class Recorder:
    """Writes a video with boxes and a line of JSON for each frame.

    Of a file, which can be read again, complete or not at all: as MP4, under its name once it is
    closed. Of a camera, which cannot, all that was written: as Matroska, which can be read up to
    its last MiB or so where its process was killed, under its name from the first frame on.

    Every frame is written once at least, and again where the next one comes later than the frame
    rate would have it: the recording is as long as its source, pauses included.
    """

    def __init__(self, folder: Path, stem: str, fps: float, *, live: bool = False) -> None:
        """Make the folder; a file's recording appears when the recorder is closed."""
        self.video, self.lines = recorded(folder / stem, live), folder / f"{stem}.jsonl"
        for path in (self.video, self.lines):
            check_free(path)
        self._live, self._fps = live, writable_fps(fps)
        self._writer: Any = None
        self._size: tuple[int, int] | None = None
        self._last: Image  # set with the first frame
        self._start_s = 0.0
        self.frames = 0
        """Frames of the recording, repeated ones included."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._stream = self._part(self.lines).open("w", encoding="utf-8", buffering=1)
        except OSError as error:
            raise DataError(f"cannot write to {folder}: {error.strerror}") from None

    def add(self, image: Image, record: FrameRecord, time_s: float | None = None) -> None:
        """Append a frame, at its time in the source if that is known."""
        pixels = np.ascontiguousarray(image[:, :, ::-1])
        if self._writer is None:
            self._open(pixels.shape[1], pixels.shape[0], time_s or 0.0)
        elif time_s is not None:
            behind = (time_s - self._start_s) * self._fps - self.frames
            if behind >= PAUSE_FRAMES:
                for _ in range(round(min(behind, LONGEST_PAUSE_S * self._fps))):
                    self._write(self._last)
        self._write(pixels)
        self._last = pixels
        try:
            self._stream.write(json.dumps(record) + "\n")
        except OSError as error:
            raise DataError(f"cannot write {self.lines}: {error.strerror}") from None

    def _part(self, path: Path) -> Path:
        """Return where a file is while it is written."""
        return path if self._live else partial_path(path)

    def _open(self, width: int, height: int, time_s: float) -> None:
        code = cv2.VideoWriter.fourcc(*"mp4v")
        part = str(self._part(self.video).absolute())  # o:9/ is no protocol of FFmpeg
        self._writer = cv2.VideoWriter(part, code, self._fps, (width, height))
        self._start_s, self._size = time_s, (width, height)
        if not self._writer.isOpened():
            raise DataError(
                f"OpenCV cannot write {self.video} ({width}x{height}, {self._fps:g} FPS)"
            )

    def _write(self, pixels: Image) -> None:
        if (pixels.shape[1], pixels.shape[0]) != self._size:  # a stream that changed its size
            pixels = np.asarray(cv2.resize(pixels, self._size), dtype=np.uint8)
        self._writer.write(pixels)
        self.frames += 1
        look = self.frames % LOOK_EVERY == 0  # OpenCV does not report a full disk
        if look and shutil.disk_usage(self.video.parent).free < LEAST_FREE_BYTES:
            raise DataError(f"cannot write {self.video}: no space is left for it")

    def close(self) -> None:
        """Finish the files and give them their names."""
        try:
            self._stream.close()
            if self._writer is not None:
                self._writer.release()
                self._check()
                if not self._live:  # a camera's is never replaced
                    with self._part(self.video).open("ab") as stream:
                        # A box that players skip.
                        size = len(MADE_BY_HEAT) + 8
                        stream.write(size.to_bytes(4, "big") + b"free" + MADE_BY_HEAT)
                    self._part(self.video).replace(self.video)
            self._part(self.lines).replace(self.lines)
        except OSError as error:
            raise DataError(f"cannot write {self.video}: {error.strerror}") from None
        finally:
            self.discard()

    def _check(self) -> None:
        """Read back how many frames the file has: OpenCV reports no full disk."""
        capture = cv2.VideoCapture(str(self._part(self.video).absolute()))
        count = round(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
        capture.release()
        # Matroska's is its duration by its rate, both rounded.
        if count < (int(0.999 * self.frames) if self._live else self.frames):
            free = shutil.disk_usage(self.video.parent).free / 2**20
            raise DataError(
                f"cannot write {self.video}: {max(0, count)} of {self.frames} frames were "
                f"written ({free:.0f} MiB are free there)"
            )

    def discard(self) -> None:
        """Close the files, and remove unfinished ones; a camera's are kept from the first frame."""
        with suppress(OSError):
            self._stream.close()
        if self._writer is not None:
            self._writer.release()
        if self._live and self.frames:
            return
        for path in (self.video, self.lines):
            with suppress(OSError):
                self._part(path).unlink(missing_ok=True)


def writable_fps(fps: float) -> float:
    """Return the nearest frame rate that OpenCV can write as MPEG-4.

    It writes 239.583 as 239583 / 1000, and the larger of both may have 16 bits.
    """
    if not (math.isfinite(fps) and 0 < fps <= MAX_TIMEBASE):
        return USUAL_FPS
    for digits in (3, 2, 1, 0):
        near = round(fps, digits)
        base = next(10**d for d in range(4) if abs(round(near * 10**d) / 10**d - near) < 1e-4)
        if 0 < near * base <= MAX_TIMEBASE:
            return near
    return USUAL_FPS


def show_frame(image: Image) -> None:
    """Show a frame in a window."""
    try:
        cv2.imshow(WINDOW, np.ascontiguousarray(image[:, :, ::-1]))
        cv2.waitKey(1)
    except cv2.error:
        raise UserError(
            "this OpenCV has no windows: leave out --show, or pip install opencv-python"
        ) from None
