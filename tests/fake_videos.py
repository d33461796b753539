"""A double of a bundle, and videos for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from deploy.edge.detect import Found
from deploy.edge.work import DetectOptions, detect_sources
from supernet.letterbox import Image


def found(count: int = 1) -> Found:
    return Found(
        np.tile(np.array([[4.0, 4.0, 20.0, 20.0]], np.float32), (count, 1)),
        np.full(count, 0.9, np.float32), np.zeros(count, np.int64), 1.0, 0.1, 0.1,
    )  # fmt: skip


class FakeBundle:
    """A double of a bundle: one object on every image."""

    names = ("thing",)
    input_hw = (48, 64)
    card: dict[str, Any] = {}  # noqa: RUF012

    def held(self) -> None:
        return None

    def detect(self, image: Image, score: float | None = None) -> Found:
        return found()


BUNDLE: Any = FakeBundle()


def detect(
    sources: Sequence[str], *, bundle: Any = BUNDLE, **options: Any
) -> tuple[dict[str, Any], list[str]]:
    return detect_sources(bundle, sources, DetectOptions(**options))


def frame(number: int) -> Image:
    return np.full((48, 64, 3), 4 * number % 256, np.uint8)


def write_video(path: Path, code: str, frames: int = 60, fps: float = 25.0) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), fps, (64, 48))
    if not writer.isOpened():
        pytest.skip(f"this OpenCV writes no {path.suffix}")
    for number in range(frames):
        writer.write(frame(number))
    writer.release()
    return path


def write_stamped(path: Path, stamps: Sequence[int], fps: float) -> Path:
    """Write a video whose frames have these time stamps, in units of 1 / fps."""
    writer = cv2.VideoWriter()
    code = cv2.VideoWriter.fourcc(*"MJPG")
    raw = [cv2.VIDEOWRITER_PROP_RAW_VIDEO, 1]
    if not writer.open(str(path), cv2.CAP_FFMPEG, code, fps, (64, 48), raw):
        pytest.skip(f"this OpenCV writes no time stamps into {path.suffix}")
    for number, stamp in enumerate(stamps):
        writer.set(cv2.VIDEOWRITER_PROP_PTS, stamp)
        writer.write(cv2.imencode(".jpg", frame(number))[1].reshape(1, -1))
    writer.release()
    return path


def facts(path: Path) -> tuple[int, float]:
    """Return how many frames a video has, and at which rate."""
    capture = cv2.VideoCapture(str(path))
    count = 0
    while capture.read()[0]:
        count += 1
    rate = capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    return count, float(rate)


def write_image(path: Path, value: int = 50) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ok, data = cv2.imencode(path.suffix, np.full((40, 60, 3), value, np.uint8))
    assert ok
    path.write_bytes(data.tobytes())
    return path
