"""Detects on video files, cameras and streams: reading, inferring and drawing overlap.

Three threads with queues of two frames between them, or of more where a rate is held. A file is
read no faster than it is processed, and every frame counts. A camera or stream keeps its own rate:
a frame that is not processed when the queue is full is dropped, the oldest first, and counted, so
that what is shown is never older than the frames of the queue.

Needs numpy and OpenCV only; every bundle's `detect.py` carries this file's text.
"""

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from supernet.letterbox import Image

from .capture import Source
from .found import Found
from .records import StepTimes, StreamSummary

QUEUE = 2
"""Frames that wait between two threads."""
PATIENCE = 30
"""Frames of a file in a row that may be broken; a camera has PATIENCE_S."""
PATIENCE_S = 3.0
HANG_S = 30.0
"""How long a camera may hang in a read before it is given up."""
KEPT_TIMES = 10_000
"""Samples kept of a step for its percentiles, drawn evenly from all frames."""


Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Frame:
    """An image of a video and when it arrived."""

    number: int
    image: Image
    arrived_s: float
    decode_ms: float
    time_s: float = 0.0
    """Its time in the video."""


@dataclass(slots=True)
class Tally:
    """Counts of the frames, and the times of each step."""

    read: int = 0
    done: int = 0
    dropped: int = 0
    """Frames of a live source that a newer one overtook."""
    broken: int = 0
    """Frames that could not be decoded."""
    seconds: float = 0.0
    source_fps: float = 0.0
    """Rate that the source reports; 0 where it reports none."""
    ended: str = ""
    """Why a live source ended, if the user did not end it."""
    times_ms: dict[str, list[float]] = field(default_factory=dict)
    """At most KEPT_TIMES of each step: a camera may run for months."""
    _seen: dict[str, int] = field(default_factory=dict)
    _random: random.Random = field(default_factory=lambda: random.Random(0))

    def add(self, **times_ms: float) -> None:
        """Keep the times of a frame; beyond KEPT_TIMES by reservoir sampling (Vitter, 1985)."""
        for name, value in times_ms.items():
            kept = self.times_ms.setdefault(name, [])
            self._seen[name] = seen = self._seen.get(name, 0) + 1
            if len(kept) < KEPT_TIMES:
                kept.append(value)
            elif (place := self._random.randrange(seen)) < KEPT_TIMES:
                kept[place] = value

    def summary(self) -> StreamSummary:
        """Return counts, the sustained rate, and percentiles of every step."""
        steps: dict[str, StepTimes] = {}
        for name, values in self.times_ms.items():
            p50, p95, p99 = (round(float(m), 3) for m in np.percentile(values, (50, 95, 99)))
            steps[name] = {"p50": p50, "p95": p95, "p99": p99}
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


class _Slots(Generic[Item]):
    """A queue of a few items; a live one drops its oldest rather than wait."""

    def __init__(
        self, live: bool, on_drop: Callable[[], None] = lambda: None, size: int = QUEUE
    ) -> None:
        self._queue: queue.Queue[Item | None] = queue.Queue(size)
        self._live, self._on_drop = live, on_drop
        self.stop = threading.Event()
        self.starved = False

    def put(self, item: Item) -> None:
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
        """Signal that nothing more comes; what waits is still processed."""
        while not self.stop.is_set():
            try:
                self._queue.put(None, timeout=0.1)
                return
            except queue.Full:
                continue

    def __iter__(self) -> Iterator[Item]:
        last_s = time.perf_counter()
        while not self.stop.is_set():
            try:
                item = self._queue.get(timeout=0.1)
            except queue.Empty:
                self.starved = self._live and time.perf_counter() - last_s > HANG_S
                if self.starved:
                    return
                continue
            if item is None:
                return
            yield item
            last_s = time.perf_counter()


def run_stream(
    source: Source,
    detect: Callable[[Image], Found],
    finish: Callable[[Frame, Found], None],
    *,
    limit: int = 0,
    waiting: int = QUEUE,
) -> Tally:
    """Detect on every frame; `finish` draws and saves, in a thread of its own.

    `limit` ends it after so many frames, `waiting` of them may wait for their turn. Ctrl-C ends a
    live source as the limit does; of a file it raises once all that was found is finished.
    Exceptions of the threads are raised here.
    """
    tally = Tally(source_fps=round(source.fps, 3))
    raised: list[BaseException] = []

    def drop() -> None:
        tally.dropped += 1

    frames = _Slots[Frame](source.live, drop, waiting)
    found = _Slots[tuple[Frame, Found]](live=False)

    def reading() -> None:
        try:
            for frame in _frames(source, tally):
                frames.put(frame)
                if frames.stop.is_set() or (limit and tally.read >= limit and not source.live):
                    break
        except BaseException as error:
            raised.append(error)
        finally:
            # In this thread: OpenCV must not close a source that is being read.
            source.close()
        frames.end()

    def finishing() -> None:
        before = 0.0
        try:
            for frame, result in found:
                start = time.perf_counter()
                finish(frame, result)
                end = time.perf_counter()
                if before:
                    tally.add(interval=(end - before) * 1e3)
                before = end
                tally.add(draw=(end - start) * 1e3, end_to_end=(end - frame.arrived_s) * 1e3)
        except BaseException as error:
            raised.append(error)
            frames.stop.set()
            found.stop.set()

    reader, finisher = (threading.Thread(target=w, daemon=True) for w in (reading, finishing))
    start = time.perf_counter()
    reader.start()
    finisher.start()
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
    except KeyboardInterrupt as interrupt:
        if not source.live or type(interrupt) is not KeyboardInterrupt:  # a signal to end all
            raise
    finally:
        tally.seconds = time.perf_counter() - start
        frames.stop.set()
        found.end()
        finisher.join()
        reader.join(timeout=PATIENCE_S)  # a reader that hangs in a driver is left behind
    if frames.starved:
        tally.ended = f"no frame for {HANG_S:g} s: the camera or its driver hangs"
    if raised:
        raise raised[0]
    return tally


def _frames(source: Source, tally: Tally) -> Iterator[Frame]:
    """Yield the frames of a source; skip broken ones of a file, end where a camera is gone."""
    failed = 0
    last_s = time.perf_counter()
    while True:
        start = time.perf_counter()
        image = source.read()
        now = time.perf_counter()
        if image is not None:
            arrived_s = start if not source.live else now
            yield Frame(tally.read, image, arrived_s, (now - start) * 1e3, source.time_s)
            tally.read += 1
            tally.broken += failed
            failed, last_s = 0, now
        elif source.live:
            if now - last_s > PATIENCE_S:
                tally.ended = f"no frame for {PATIENCE_S:g} s after {tally.read} frames"
                return
            time.sleep(0.02)
        else:
            failed += 1
            if failed > PATIENCE:  # at the end of a file reading fails too
                tally.broken += source.missing(tally.read + tally.broken)
                return
