"""Videos as people have them: containers without an index, pauses, slow motion, cut files."""

import json
import re
import struct
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import pytest
from PIL import Image as PilImage

from deploy.edge import stream
from deploy.edge.capture import Source, stamped_fps
from deploy.edge.detect import Found
from deploy.edge.recorder import Recorder, writable_fps
from deploy.edge.stream import KEPT_TIMES, Tally, run_stream
from deploy.edge.work import DetectOptions, detect_stream, what_was_lost
from supernet.errors import DataError
from supernet.letterbox import Image
from tests.fake_videos import (
    BUNDLE,
    FakeBundle,
    detect,
    facts,
    found,
    frame,
    write_stamped,
    write_video,
)


@pytest.mark.parametrize(
    ("suffix", "code"),
    [
        (".mp4", "mp4v"), (".mov", "mp4v"), (".3gp", "mp4v"), (".avi", "MJPG"), (".mkv", "MJPG"),
        (".webm", "VP80"), (".webm", "VP90"), (".ts", "mpg2"), (".mts", "mpg2"), (".m2ts", "mpg2"),
        (".mpg", "PIM1"), (".vob", "mpg2"), (".wmv", "WMV2"), (".flv", "FLV1"), (".mjpeg", "MJPG"),
        (".ogv", "VP80"),  # in Ogg; OpenCV's wheels have no encoder for Theora
    ],
)  # fmt: skip
def test_every_frame_of_every_container(tmp_path: Path, suffix: str, code: str) -> None:
    path = write_video(tmp_path / f"clip{suffix}", code)
    result, problems = detect([str(path)], save=tmp_path / "out")
    assert problems == [] and result["frames"] == 60 and result["broken"] == 0
    assert result["source_fps"] == pytest.approx(25.0, rel=0.02)
    stem = "clip" if suffix == ".mp4" else path.name
    count, rate = facts(tmp_path / "out" / f"{stem}.mp4")
    assert (count, rate) == (60, pytest.approx(25.0, rel=0.02))
    assert len((tmp_path / "out" / f"{stem}.jsonl").read_text().splitlines()) == 60


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_pause_loses_no_frame_and_stays_in_the_recording(tmp_path: Path, suffix: str) -> None:
    path = write_stamped(tmp_path / f"clip{suffix}", [*range(30), *range(80, 110)], 25.0)
    result, problems = detect([str(path)], save=tmp_path / "out")
    assert problems == [] and result["frames"] == 60 and result["broken"] == 0
    stem = "clip" if suffix == ".mp4" else path.name
    count, rate = facts(tmp_path / "out" / f"{stem}.mp4")
    assert rate == pytest.approx(25.0) and count == pytest.approx(110, abs=1)
    lines = (tmp_path / "out" / f"{stem}.jsonl").read_text().splitlines()
    assert [json.loads(lines[n])["time_s"] for n in (29, 30)] == [1.16, 3.2]


def test_a_rate_of_1000_in_the_header_is_not_believed(tmp_path: Path) -> None:
    """As browsers record: the unit of time is in the place of the frame rate."""
    path = write_stamped(tmp_path / "clip.mkv", range(0, 60 * 40, 40), 1000.0)
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT) > 1000
    result, problems = detect([str(path)], save=tmp_path / "out")
    assert problems == [] and result["frames"] == 60
    assert result["source_fps"] == pytest.approx(25.0)
    assert facts(tmp_path / "out" / "clip.mkv.mp4") == (60, pytest.approx(25.0))


@pytest.mark.parametrize("fps", [239.58, 239.583, 59.94, 29.97002997, 0.5, 1000.0])
def test_unusual_rates_are_recorded(tmp_path: Path, fps: float) -> None:
    recorder = Recorder(tmp_path, "clip", fps)
    for number in range(10):
        recorder.add(frame(number), {"frame": number}, number / fps)
    recorder.close()
    assert facts(tmp_path / "clip.mp4") == (10, pytest.approx(fps, rel=1e-3))
    assert writable_fps(float("nan")) == writable_fps(0.0) == 25.0


def test_a_gif_gives_all_its_frames(tmp_path: Path) -> None:
    frames = [PilImage.fromarray(frame(number)) for number in range(40)]
    folder = tmp_path / "images"
    folder.mkdir()
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:], duration=50)
    frames[0].save(folder / "still.gif")
    result, problems = detect([str(folder / "a.gif")])
    assert problems == [] and result["frames"] == 40 and result["source_fps"] == 20.0
    result, problems = detect([str(folder)], save=tmp_path / "out")
    assert result["images"] == 1 and result["videos"][0]["frames"] == 40 and not problems
    for times in ([100, 1000, 100], [100, 1000, 100, 1000]):
        frames[0].save(
            folder / "a.gif", save_all=True, append_images=frames[1 : len(times)], duration=times
        )
        result, problems = detect([str(folder / "a.gif")])
        assert result["frames"] == len(times) and not problems


def test_what_is_cut_off_or_broken_is_reported(tmp_path: Path) -> None:
    for suffix in (".avi", ".mkv"):
        whole = write_video(tmp_path / f"whole{suffix}", "MJPG").read_bytes()
        cut = tmp_path / f"cut{suffix}"
        cut.write_bytes(whole[: len(whole) // 2])
        done = detect_stream(BUNDLE, str(cut), DetectOptions())
        assert 10 < done["frames"] < 60 and done["broken"] == 60 - done["frames"], suffix
        assert "cannot be decoded" in what_was_lost(done)
    path = write_video(tmp_path / "holes.mp4", "MJPG")
    data = bytearray(path.read_bytes())
    starts = [at for at in range(len(data)) if data[at : at + 3] == b"\xff\xd8\xff"]
    assert len(starts) == 60
    for index in (20, 21, 40):
        length = starts[index + 1] - starts[index]
        data[starts[index] : starts[index + 1]] = bytes(length)
    path.write_bytes(data)
    done = detect_stream(BUNDLE, str(path), DetectOptions())
    assert (done["frames"], done["broken"]) == (57, 3)


@pytest.mark.parametrize(
    ("suffix", "code"), [(".mkv", "MJPG"), (".webm", "VP80"), (".avi", "MJPG")]
)
def test_sound_that_is_longer_than_the_picture_is_no_loss(
    tmp_path: Path, suffix: str, code: str
) -> None:
    """The container's length, and with it the number of frames that it states, is the sound's."""
    path = write_video(tmp_path / f"clip{suffix}", code)
    data = bytearray(path.read_bytes())
    if suffix == ".avi":
        for name, place in ((b"strh", 40), (b"avih", 24)):
            at = data.index(name) + place
            data[at : at + 4] = struct.pack("<I", 100)
    else:
        at = data.index(b"\x44\x89\x88") + 3
        data[at : at + 8] = struct.pack(">d", 4000.0)
    path.write_bytes(data)
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT) == 100
    result, problems = detect([str(path)])
    assert (result["frames"], result["broken"], problems) == (60, 0, [])


def test_a_trimmed_video_has_the_frames_that_it_shows(tmp_path: Path) -> None:
    """Phones trim by an edit list; the frames stay in the file."""
    path = write_video(tmp_path / "clip.mp4", "mp4v")
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 12
    data[at : at + 4] = struct.pack(">I", struct.unpack(">I", data[at : at + 4])[0] // 2)
    path.write_bytes(data)
    result, problems = detect([str(path)])
    assert (result["frames"], result["broken"], problems) == (30, 0, [])


class Hanging(Source):
    """A camera that gives a few frames and then never comes back from a read."""

    def __init__(self) -> None:
        self.name, self.live, self.fps, self.frames = "0", True, 25.0, 0
        self.closed_by: list[str] = []
        self.free = threading.Event()
        self._count = 0

    def read(self) -> Image | None:
        self._count += 1
        if self._count > 3:
            self.free.wait(20)
            return None
        time.sleep(0.02)  # each is taken before the next comes
        return frame(self._count)

    def close(self) -> None:
        self.closed_by.append(threading.current_thread().name)


def test_a_camera_that_hangs_is_left_and_not_closed_under_its_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "HANG_S", 0.3)
    monkeypatch.setattr(stream, "PATIENCE_S", 0.1)
    camera = Hanging()
    tally = run_stream(camera, lambda image: found(), lambda *_: None)
    assert tally.done == 3 and "hangs" in tally.ended
    assert camera.closed_by == [], "its own thread is still reading"
    camera.free.set()
    deadline = time.monotonic() + 5
    while not camera.closed_by and time.monotonic() < deadline:
        time.sleep(0.01)
    assert camera.closed_by and camera.closed_by != [threading.current_thread().name]


def test_a_camera_of_months_keeps_bounded_times() -> None:
    tally = Tally()
    for number in range(3 * KEPT_TIMES):
        tally.add(inference=float(number))
    assert len(tally.times_ms["inference"]) == KEPT_TIMES
    p50 = tally.summary()["ms"]["inference"]["p50"]
    assert p50 == pytest.approx(1.5 * KEPT_TIMES, rel=0.05)


def test_a_recording_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4", "mp4v", 20)
    out = tmp_path / "out"

    def fail(self: Recorder, pixels: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "_write", fail)
        with pytest.raises(OSError, match="No space left"):
            detect([str(path)], save=out)
    assert list(out.iterdir()) == []

    with monkeypatch.context() as patch:
        patch.setattr(cv2, "VideoWriter", FakeWriter)
        with pytest.raises(DataError, match=r"OpenCV cannot write .*clip\.mp4"):
            detect([str(path)], save=out)
    assert list(out.iterdir()) == []


class FakeWriter:
    """OpenCV's writer where it cannot write."""

    def __init__(self, *_: object) -> None:
        pass

    @staticmethod
    def fourcc(*_: str) -> int:
        return 0

    def isOpened(self) -> bool:  # noqa: N802
        return False

    def release(self) -> None:
        pass


def test_a_full_disk_is_one_line_with_the_files_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenCV's writer says nothing of it: the file is read back."""
    recorder = Recorder(tmp_path, "clip", 25.0)
    recorder.add(frame(0), {"frame": 0}, 0.0)
    real = recorder._writer.release

    def release() -> None:
        real()
        for part in tmp_path.glob(".*.mp4"):
            part.write_bytes(part.read_bytes()[:100])

    class Filled:
        def __init__(self, writer: Any) -> None:
            self._writer = writer

        def write(self, pixels: Any) -> None:
            self._writer.write(pixels)

        def release(self) -> None:
            release()

    recorder._writer = Filled(recorder._writer)
    with pytest.raises(DataError, match=r"cannot write .*clip\.mp4: 0 of 1 frames"):
        recorder.close()
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_keeps_what_a_camera_gave(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", "mp4v", 20)
    calls = []

    class Interrupted(FakeBundle):
        def held(self) -> None:
            return None

        def detect(self, image: Image, score: float | None = None) -> Found:
            calls.append(1)
            if len(calls) > 5:
                raise KeyboardInterrupt
            return found()

    interrupted: Any = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        detect(bundle=interrupted, sources=[str(path)], save=tmp_path / "out")
    assert facts(tmp_path / "out" / "clip.mp4")[0] == 5


def test_a_window_needs_no_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "clip.mp4", "mp4v", 5)
    shown: list[Image] = []
    monkeypatch.setattr("deploy.edge.work.show_frame", shown.append)
    detect([str(path)], show=True)
    assert len(shown) == 5 and shown[0].shape == (48, 64, 3)


def test_a_files_rate_is_that_of_its_stamps(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", "mp4v", 30, fps=29.97)
    assert stamped_fps(str(path), 29.97) == 29.97
    assert stamped_fps(str(path), 1000.0) == pytest.approx(29.97, rel=1e-3)


def test_a_videos_result_has_the_keys_of_the_documentation(tmp_path: Path) -> None:
    page = Path(__file__).parent.parent / "docs" / "commands.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    (row,) = (line for line in lines if line.startswith("| `heat detect` of a video"))
    keys = re.findall(r"`(\w+)`", row.partition("; of several")[0])
    path = write_video(tmp_path / "clip.mp4", "mp4v", 5)
    result, _ = detect([str(path)])
    assert len(keys) >= 5 and set(keys) <= result.keys()
