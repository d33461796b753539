"""Writes drawn JPEGs into a named pipe, as a video that is read in a loop, or as a camera does.

python benchmarks/feeder.py PIPE SECONDS RATE        rate 0: as fast as they are read
"""

import contextlib
import sys
import time
from pathlib import Path

import cv2
import numpy as np

FRAMES = 300


def drawn_frames() -> list[bytes]:
    """Return the JPEGs of a disc that moves over one background."""
    rng = np.random.default_rng(0)
    background = cv2.resize(
        rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), (320, 240), interpolation=cv2.INTER_CUBIC
    )
    frames = []
    for number in range(FRAMES):
        frame = background.copy()
        cv2.circle(frame, (number * 3 % 320, number * 2 % 240), 24, (30, 200, 60), -1)
        frames.append(cv2.imencode(".jpg", frame)[1].tobytes())
    return frames


def feed(pipe: Path, seconds: float, rate: float) -> None:
    """Write drawn JPEGs into a pipe for so long, at a rate, or as fast as they are read."""
    frames = drawn_frames()
    with contextlib.suppress(BrokenPipeError), pipe.open("wb", buffering=0) as stream:
        start, number = time.monotonic(), 0
        while time.monotonic() - start < seconds:
            stream.write(frames[number % FRAMES])
            number += 1
            if rate:
                time.sleep(max(0.0, start + number / rate - time.monotonic()))


if __name__ == "__main__":
    feed(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
