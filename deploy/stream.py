"""Detects on video files, cameras and streams: reading, inferring and drawing overlap.

Three threads with queues of two frames between them. A file is read no faster than it is worked
off, and every frame counts. A camera or stream keeps its own rate: a frame that is not worked off
when a newer one comes is dropped, the oldest first, and counted, so that what is shown is never
more than two frames old. Needs numpy and OpenCV; every bundle's `detect.py` carries this text.
"""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from supernet.errors import DataError, UserError
from supernet.letterbox import Image

QUEUE = 2
"""Frames that wait between two threads."""
PATIENCE = 30
"""Frames of a file in a row that may be broken; a camera has PATIENCE_S."""
PATIENCE_S = 3.0
WINDOW = "heat detect"
VIDEO_SUFFIXES = {".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts"}


class Detected(Protocol):
    """What a detector finds on a frame."""

    preprocess_ms: float
    latency_ms: float
    postprocess_ms: float


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture and when it was there."""

    number: int
    image: Image
    arrived_s: float
    decode_ms: float


@dataclass(slots=True)
class Tally:
    """What happened to the frames, and how long each took, in ms."""

    read: int = 0
    done: int = 0
    dropped: int = 0
    """Frames of a live source that a newer one overtook."""
    broken: int = 0
    """Frames that could not be decoded."""
    seconds: float = 0.0
    source_fps: float = 0.0
    """Rate that the source says it has; 0 where it does not."""
    ended: str = ""
    """Why a live source ended, if it did by itself."""
    times_ms: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **times_ms: float) -> None:
        """Note the times of a frame."""
        for name, value in times_ms.items():
            self.times_ms.setdefault(name, []).append(value)

    def summary(self) -> dict[str, Any]:
        """Return counts, the sustained rate, and percentiles of every step."""
        steps = {}
        for name, values in self.times_ms.items():
            marks = np.percentile(values, (50, 95, 99))
            names = ("p50", "p95", "p99")
            steps[name] = dict(zip(names, (round(float(m), 3) for m in marks), strict=True))
        return {
            "frames": self.done,
            "read": self.read,
            "dropped": self.dropped,
            "broken": self.broken,
            "seconds": round(self.seconds, 3),
            "fps": round(self.done / self.seconds, 3) if self.seconds else 0.0,
            "source_fps": self.source_fps or None,
            "ended": self.ended or None,
            "ms": steps,
        }


def is_video(source: str) -> bool:
    """Say whether a source is a camera number, a stream, or a video file."""
    return source.isdigit() or "://" in source or Path(source).suffix.lower() in VIDEO_SUFFIXES


class Source:
    """A camera (its number), a stream (a URL), or a video file, read frame by frame."""

    def __init__(self, name: str) -> None:
        """Open it; raises `DataError` where OpenCV cannot."""
        self.name = name
        self.live = name.isdigit() or "://" in name
        if not self.live and not Path(name).exists():
            raise DataError(f"no video at {name}")
        self._capture = cv2.VideoCapture(int(name) if name.isdigit() else name)
        if not self._capture.isOpened():
            what = f"camera {name}" if name.isdigit() else name
            raise DataError(f"OpenCV cannot open {what}: is it there, and is it a video?")
        self.fps = float(self._capture.get(cv2.CAP_PROP_FPS) or 0.0)
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.frames = 0 if self.live else max(0, int(count))

    def read(self) -> Image | None:
        """Return the next frame as RGB, None where it cannot be had."""
        ok, pixels = self._capture.read()
        if not ok or pixels is None:
            return None
        return np.ascontiguousarray(pixels[:, :, ::-1]).astype(np.uint8)

    def close(self) -> None:
        """Let go of it."""
        self._capture.release()


class _Slots:
    """A queue of a few items; a live one drops its oldest rather than wait."""

    def __init__(self, live: bool, on_drop: Callable[[], None] = lambda: None) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(QUEUE)
        self._live, self._on_drop = live, on_drop
        self.stop = threading.Event()

    def put(self, item: Any) -> None:
        while not self.stop.is_set():
            try:
                self._queue.put(item, timeout=0.0 if self._live else 0.1)
                return
            except queue.Full:
                if self._live:
                    try:
                        self._queue.get_nowait()
                        self._on_drop()
                    except queue.Empty:
                        pass

    def end(self) -> None:
        """Let the reader know that nothing more comes; what waits is still worked off."""
        while not self.stop.is_set():
            try:
                self._queue.put(None, timeout=0.1)
                return
            except queue.Full:
                continue

    def __iter__(self) -> Iterator[Any]:
        while not self.stop.is_set():
            try:
                item = self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
            if item is None:
                return
            yield item


def run_stream(
    source: Source,
    detect: Callable[[Image], Any],
    finish: Callable[[Frame, Any], None],
    *,
    limit: int = 0,
) -> Tally:
    """Detect on every frame; `finish` draws and saves, in a thread of its own.

    `limit` ends it after so many frames. Ctrl-C ends it too, and raises once all that was found is
    finished. What a thread raises is raised here.
    """
    tally = Tally(source_fps=round(source.fps, 3))
    raised: list[BaseException] = []

    def drop() -> None:
        tally.dropped += 1

    frames = _Slots(source.live, drop)
    found = _Slots(live=False)

    def reading() -> None:
        try:
            for frame in _frames(source, tally):
                frames.put(frame)
                if frames.stop.is_set() or (limit and tally.read >= limit and not source.live):
                    break
        except BaseException as error:
            raised.append(error)
        frames.end()

    def finishing() -> None:
        try:
            for frame, result in found:
                start = time.perf_counter()
                finish(frame, result)
                end = time.perf_counter()
                tally.add(draw=(end - start) * 1e3, end_to_end=(end - frame.arrived_s) * 1e3)
        except BaseException as error:
            raised.append(error)
            frames.stop.set()
            found.stop.set()

    threads = [threading.Thread(target=work, daemon=True) for work in (reading, finishing)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    try:
        for frame in frames:
            result = detect(frame.image)
            tally.add(
                decode=frame.decode_ms,
                preprocess=result.preprocess_ms,
                inference=result.latency_ms,
                postprocess=result.postprocess_ms,
            )
            tally.done += 1
            found.put((frame, result))
            if limit and tally.done >= limit:
                break
    finally:
        tally.seconds = time.perf_counter() - start
        frames.stop.set()
        found.end()
        for thread in threads:
            thread.join(timeout=10)
        source.close()
    if raised:
        raise raised[0]
    return tally


def _frames(source: Source, tally: Tally) -> Iterator[Frame]:
    """Yield the frames of a source; skip broken ones of a file, end where a camera went away."""
    failed = 0
    last_s = time.perf_counter()
    while True:
        start = time.perf_counter()
        image = source.read()
        now = time.perf_counter()
        if image is not None:
            yield Frame(tally.read, image, start if not source.live else now, (now - start) * 1e3)
            tally.read += 1
            failed, last_s = 0, now
        elif source.live:
            if now - last_s > PATIENCE_S:
                tally.ended = f"no frame for {PATIENCE_S:g} s after {tally.read} frames"
                return
            time.sleep(0.02)
        else:
            failed += 1
            # The count in a file's header is what it should have; at its end, reading fails too.
            if tally.read + tally.broken + failed > source.frames or failed > PATIENCE:
                missing = source.frames - tally.read - tally.broken
                tally.broken += max(0, missing)
                return


class Recorder:
    """Writes a video with boxes and a line of JSON for each frame; whole or not at all."""

    def __init__(self, folder: Path, stem: str, fps: float, *, show: bool = False) -> None:
        """Make the folder; the files appear when the recorder is closed."""
        self._folder, self._stem, self._fps, self._show = folder, stem, fps or 25.0, show
        self._writer: Any = None
        self._lines: Any = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lines = self._partial("jsonl").open("w", encoding="utf-8")
        except OSError as error:
            raise DataError(f"cannot write to {folder}: {error.strerror}") from None

    def _partial(self, suffix: str) -> Path:
        return self._folder / f".{self._stem}.part.{suffix}"

    def add(self, picture: Image, record: dict[str, Any]) -> None:
        """Append a frame."""
        if self._writer is None:
            height, width = picture.shape[:2]
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(
                str(self._partial("mp4")), code, self._fps, (width, height)
            )
            if not self._writer.isOpened():
                raise DataError(f"OpenCV cannot write {self._folder / self._stem}.mp4")
        pixels = np.ascontiguousarray(picture[:, :, ::-1])
        self._writer.write(pixels)
        self._lines.write(json.dumps(record) + "\n")
        if self._show:
            try:
                cv2.imshow(WINDOW, pixels)
                cv2.waitKey(1)
            except cv2.error:
                raise UserError(
                    "this OpenCV has no windows: leave out --show, or pip install opencv-python"
                ) from None

    def close(self) -> None:
        """Give the files their names."""
        self._lines.close()
        self._partial("jsonl").replace(self._folder / f"{self._stem}.jsonl")
        if self._writer is not None:
            self._writer.release()
            self._partial("mp4").replace(self._folder / f"{self._stem}.mp4")
