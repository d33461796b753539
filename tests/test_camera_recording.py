"""Recordings of cameras: what was written stays, however the process ends."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import deploy.edge.work
from deploy.edge.capture import Source
from deploy.edge.detect import Found
from deploy.edge.recorder import Recorder
from deploy.edge.saving import recordings_of
from deploy.edge.work import DetectOptions, detect_stream
from supernet.errors import DataError
from supernet.letterbox import Image
from tests.fake_videos import FakeBundle, facts, found, frame

KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from deploy.edge.recorder import Recorder
rng = np.random.default_rng(0)
recorder = Recorder(Path(sys.argv[1]), "camera0", 25.0, live=True)
for number in range(200):
    recorder.add(rng.integers(0, 256, (240, 320, 3), np.uint8), {"frame": number})
os.kill(os.getpid(), signal.SIGKILL)
"""


class Camera(Source):
    """A camera of twenty frames, which then fails."""

    def __init__(self, name: str) -> None:
        self.name, self.live, self.fps, self.frames = name, True, 25.0, 0
        self._count = 0

    def read(self) -> Image | None:
        time.sleep(0.02)  # each is taken before the next comes
        self._count += 1
        if self._count > 20:
            raise DataError("the camera fell down")
        return frame(self._count)

    def close(self) -> None:
        pass


def test_a_killed_process_leaves_its_recording(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert done.returncode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["camera0.jsonl", "camera0.mkv"]
    assert facts(tmp_path / "camera0.mkv")[0] > 100
    lines = (tmp_path / "camera0.jsonl").read_text().splitlines()
    assert len(lines) == 200 and json.loads(lines[-1]) == {"frame": 199}
    assert recordings_of(["0"], tmp_path)["0"] == tmp_path / "camera0-2", "it is not replaced"


@pytest.mark.parametrize("at_frame", [1, 8])
def test_an_error_leaves_what_a_camera_gave(
    at_frame: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing, where it comes before the first frame."""

    class Failing(FakeBundle):
        seen = 0

        def detect(self, image: Image, score: float | None = None) -> Found:
            self.seen += 1
            if self.seen == at_frame:
                raise DataError("the runtime gave up")
            return found()

    monkeypatch.setattr(deploy.edge.work, "Source", Camera)
    with pytest.raises(DataError, match="gave up"):
        detect_stream(Failing(), "0", DetectOptions(), tmp_path / "camera0")
    expected = {"camera0.mkv", "camera0.jsonl"} if at_frame > 1 else set()
    assert {path.name for path in tmp_path.iterdir()} == expected
    if expected:
        assert facts(tmp_path / "camera0.mkv")[0] == at_frame - 1


@pytest.mark.parametrize("fps", [12.345, 25.0, 29.97, 60.0])
def test_no_frame_of_a_camera_is_missing_once_it_is_closed(fps: float, tmp_path: Path) -> None:
    """Matroska has no number of frames, only a duration in milliseconds."""
    recorder = Recorder(tmp_path, "camera0", fps, live=True)
    for number in range(97):
        recorder.add(frame(number), {"frame": number})
    recorder.close()
    assert facts(tmp_path / "camera0.mkv")[0] == 97


def test_recordings_of_earlier_versions_are_not_replaced(tmp_path: Path) -> None:
    """They were MP4 files; the names of their detections are the same now."""
    for name in ("camera0.mp4", "camera0-2.jsonl"):
        (tmp_path / name).write_bytes(b"")
    assert recordings_of(["0"], tmp_path)["0"] == tmp_path / "camera0-3"


def test_of_a_camera_without_a_frame_nothing_is_left(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "camera0", 25.0, live=True)
    recorder.discard()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path, "camera0", 25.0, live=True)
    monkeypatch.setattr("deploy.edge.recorder.LEAST_FREE_BYTES", 2**62)
    with pytest.raises(DataError, match=r"cannot write .*camera0\.mkv: no space is left"):
        for number in range(30):
            recorder.add(np.zeros((48, 64, 3), np.uint8), {"frame": number})
    recorder.discard()
    assert facts(tmp_path / "camera0.mkv")[0] == 25
