"""Detection on videos and cameras. No camera is here: a source that acts like one stands in."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from deploy.edge import stream
from deploy.edge.capture import Source
from deploy.edge.detect import Found
from deploy.edge.recorder import Recorder
from deploy.edge.sources import is_video
from deploy.edge.stream import Frame, run_stream
from deploy.edge.work import what_was_lost
from supernet.errors import DataError
from supernet.letterbox import Image

NOTHING = Found(
    np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), 1.0, 0.1, 0.1
)


def write_video(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, (64, 48))
    for number in range(frames):
        writer.write(np.full((48, 64, 3), 5 * number, np.uint8))
    writer.release()
    return path


class Camera(Source):
    """Gives a frame every few milliseconds, whether anybody takes it or not; goes away at last."""

    def __init__(self, period_s: float, frames: int) -> None:
        self.name, self.live, self.fps, self.frames = "0", True, 1 / period_s, 0
        self._period_s, self._left, self._count = period_s, frames, 0

    def read(self) -> Image | None:
        time.sleep(self._period_s)
        if self._count == self._left:
            return None
        self._count += 1
        return np.full((8, 8, 3), self._count % 256, np.uint8)

    def close(self) -> None:
        pass


def test_every_frame_of_a_file_counts(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 20)
    seen: list[int] = []

    def slow(image: Image) -> Found:
        time.sleep(0.002)
        return NOTHING

    tally = run_stream(Source(str(path)), slow, lambda frame, found: seen.append(frame.number))
    assert seen == list(range(20)) and tally.done == tally.read == 20
    assert tally.dropped == tally.broken == 0 and tally.source_fps == 25.0
    summary = tally.summary()
    assert set(summary["ms"]) == {
        "decode", "preprocess", "inference", "postprocess", "draw", "end_to_end", "interval"
    }  # fmt: skip
    assert summary["ms"]["inference"] == {"p50": 1.0, "p95": 1.0, "p99": 1.0}
    assert not what_was_lost({"source": "clip", **summary})


@pytest.mark.alone
def test_a_camera_keeps_its_rate_and_old_frames_are_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "PATIENCE_S", 0.05)
    numbers: list[int] = []

    def slow(image: Image) -> Found:
        time.sleep(0.03)
        return NOTHING

    tally = run_stream(Camera(0.005, 60), slow, lambda frame, found: numbers.append(frame.number))
    assert tally.dropped > 10 and tally.done + tally.dropped == tally.read == 60
    assert numbers == sorted(numbers) and numbers[-1] == 59  # the newest is never the one dropped
    # No queue grows: what is shown is at most a few frames old.
    assert max(tally.times_ms["end_to_end"]) < 1000
    assert "no frame for" in tally.ended
    assert "is it still there" in what_was_lost({"source": "0", **tally.summary()})


@pytest.mark.alone
def test_overlap_is_faster_than_one_after_the_other(tmp_path: Path) -> None:
    """Drawing does not hold up inference: as long as both sleep, two thirds of the time suffice."""
    source = Source(str(write_video(tmp_path / "clip.mp4", 20)))

    def nap(*_: Any) -> Found:
        time.sleep(0.02)
        return NOTHING

    tally = run_stream(source, nap, nap)
    assert tally.done == 20 and tally.seconds < 20 * 0.04 * 0.9


def test_an_error_in_a_thread_is_raised(tmp_path: Path) -> None:
    source = Source(str(write_video(tmp_path / "clip.mp4", 10)))

    def fail(frame: Frame, found: Found) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run_stream(source, lambda image: NOTHING, fail)


def test_a_limit_ends_it(tmp_path: Path) -> None:
    source = Source(str(write_video(tmp_path / "clip.mp4", 10)))
    assert run_stream(source, lambda image: NOTHING, lambda *_: None, limit=4).done == 4


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no video at"):
        Source(str(tmp_path / "absent.mp4"))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(write_video(tmp_path / "clip.mp4", 10).read_bytes()[:200])
    with pytest.raises(DataError, match="cannot open"):
        Source(str(broken))
    assert [is_video(name) for name in ("0", "rtsp://box/1", "a.MP4", "a.jpg", "folder")] == [
        True, True, True, False, False
    ]  # fmt: skip


def test_a_recording_appears_whole(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "out", "clip", 25.0)
    recorder.add(np.zeros((48, 64, 3), np.uint8), {"frame": 0})
    assert not list((tmp_path / "out").glob("[!.]*"))
    recorder.close()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clip.jsonl", "clip.mp4"]
    assert json.loads((tmp_path / "out" / "clip.jsonl").read_text()) == {"frame": 0}
    with pytest.raises(DataError, match="cannot write to"):
        Recorder(tmp_path / "out" / "clip.mp4" / "below", "clip", 25.0)


def test_ctrl_c_ends_a_camera_and_breaks_off_a_file(tmp_path: Path) -> None:
    """What a camera gave is reported: there is no other way to end it. SIGTERM ends all."""

    class TermError(KeyboardInterrupt):
        pass

    def stopping(error: type[KeyboardInterrupt]) -> Callable[[Image], Found]:
        seen: list[Image] = []

        def detect(image: Image) -> Found:
            seen.append(image)
            if len(seen) > 3:
                raise error
            return NOTHING

        return detect

    kept: list[int] = []
    tally = run_stream(
        Camera(0.01, 100),
        stopping(KeyboardInterrupt),
        lambda frame, found: kept.append(frame.number),
    )
    assert tally.done == len(kept) == 3 and tally.summary()["ended"] is None
    path = write_video(tmp_path / "clip.mp4", 20)
    for source, error in ((Camera(0.01, 100), TermError), (Source(str(path)), KeyboardInterrupt)):
        with pytest.raises(KeyboardInterrupt):
            run_stream(source, stopping(error), lambda frame, found: None)
