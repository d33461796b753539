"""`heat detect` on what shells and folders give it, and what it never writes over."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from deploy.edge.detect import Bundle
from deploy.edge.drawing import draw
from deploy.edge.recorder import Recorder
from deploy.edge.saving import outputs_of, recordings_of
from deploy.edge.sources import image_paths
from deploy.edge.work import DetectOptions, detect_files
from supernet.data.shapes import draw as draw_shapes
from supernet.errors import DataError, UserError
from supernet.heatdetr.detector import Detector
from supernet.letterbox import Image, read_image
from tests.bundles import export
from tests.command_line import fails
from tests.fake_videos import BUNDLE, detect, write_image, write_video


def files(paths: list[Path], save: Path) -> tuple[list[dict[str, Any]], list[str]]:
    return detect_files(BUNDLE, paths, DetectOptions(save=save))


def test_every_image_has_a_place_of_its_own(tmp_path: Path) -> None:
    shots = tmp_path / "shots"
    for name in ("a.png", "a.jpg", "one/x.jpg", "two/x.jpg"):
        write_image(shots / name)
    out = tmp_path / "out"
    records, broken = files(image_paths(shots / "**" / "*"), out)
    assert not broken and len({record["saved"] for record in records}) == 4
    written = {str(path.relative_to(out)) for path in out.rglob("*.*g")}
    assert written == {"a.png", "a.jpg", "one/x.jpg", "two/x.jpg"}
    again, _ = files(image_paths(shots / "**" / "*"), out)
    assert again == records, "what it wrote itself it may replace"


def test_the_users_images_are_never_replaced(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    originals = [write_image(photos / name).read_bytes() for name in ("a.jpg", "b.png")]
    (tmp_path / "link").symlink_to(photos)
    for folder in (photos, tmp_path / "link", photos / ".." / "photos"):
        with pytest.raises(DataError, match="is the folder of"):
            detect([str(photos)], save=folder)
    tree = [write_image(tmp_path / "tree" / name / "x.jpg") for name in "ab"]
    with pytest.raises(DataError, match="is a source"):
        detect([str(path) for path in tree], save=tmp_path / "tree")
    copies = tmp_path / "copies"
    write_image(copies / "b.png", 70)  # somebody's own, of the same name
    before = (copies / "b.png").read_bytes()
    with pytest.raises(DataError, match=r"b\.png is there already, and not from heat detect"):
        detect([str(photos)], save=copies)
    assert [(photos / name).read_bytes() for name in ("a.jpg", "b.png")] == originals
    assert [path.name for path in copies.iterdir()] == ["b.png"]
    assert (copies / "b.png").read_bytes() == before


def test_the_users_videos_are_never_replaced(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4", "mp4v", 10)
    before = clip.read_bytes()
    with pytest.raises(DataError, match="is the folder of"):
        detect([str(clip)], save=tmp_path)
    other = tmp_path / "out" / "clip.mp4"
    other.parent.mkdir()
    other.write_bytes(before)
    with pytest.raises(DataError, match="not from heat detect"):
        detect([str(clip)], save=other.parent)
    assert clip.read_bytes() == before and other.read_bytes() == before
    other.unlink()
    for _ in range(2):  # its own it may replace
        result, problems = detect([str(clip)], save=other.parent)
        assert result["frames"] == 10 and not problems
    avi = write_video(tmp_path / "clip.avi", "MJPG", 10)
    result, _ = detect([str(clip), str(avi)], save=other.parent)
    assert [video["frames"] for video in result["videos"]] == [10, 10]
    names = {path.name for path in other.parent.iterdir()}
    assert names == {"clip.mp4", "clip.jsonl", "clip.avi.mp4", "clip.avi.jsonl"}


def test_recordings_of_a_camera_follow_each_other(tmp_path: Path) -> None:
    for expected in ("camera0", "camera0-2", "camera0-3"):
        target = recordings_of(["0"], tmp_path)["0"]
        assert target == tmp_path / expected
        recorder = Recorder(target.parent, target.name, 25.0, live=True)
        recorder.add(np.zeros((48, 64, 3), np.uint8), {"boxes_xyxy_px": []})
        recorder.close()
    same = recordings_of(["rtsp://a/live", "rtsp://b/live"], tmp_path)
    assert [path.name for path in same.values()] == ["live", "live-2"]


def test_a_name_of_255_bytes_does_not_stop_the_folder(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for name in ("a" * 251 + ".png", "ä" * 124 + ".webp", "b.png"):
        source = write_image(photos / "x.png")
        source.rename(photos / name)
    records, broken = files(image_paths(photos), tmp_path / "out")
    assert len(records) == 3 and not broken
    assert all(Path(record["saved"]).exists() for record in records)
    assert all(len(os.fsencode(Path(record["saved"]).name)) <= 255 for record in records)


def test_an_image_wider_than_jpeg_allows_becomes_png(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    wide = np.zeros((4, 70_000, 3), np.uint8)
    photos.mkdir()
    assert cv2.imwrite(str(photos / "wide.png"), wide)
    (photos / "wide.png").rename(photos / "wide.jpg")
    write_image(photos / "x.jpg")
    records, broken = files(image_paths(photos), tmp_path / "out")
    assert len(records) == 2 and not broken
    saved = read_image(Path(records[0]["saved"]))
    assert saved is not None and saved.shape == (4, 70_000, 3)


def test_numbers_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    for option, value, message in (
        ("--score", "nan", "--score nan"),
        ("--score", "1.5", "--score 1.5"),
        ("--frames", "-5", "--frames -5"),
    ):
        assert message in fails(2, "detect", tmp_path, "x.jpg", option, value)
    assert "which images?" in fails(2, "detect", tmp_path)
    assert "--trials -1" in fails(2, "thin", "--target-fps", 5, "--search", "tpe", "--trials", -1)
    asked = ["--search", "tpe", "--study", "mysql://me:secret@localhost/db"]
    line = fails(2, "thin", "--target-fps", 5, *asked, "--out", tmp_path / "run")
    assert "--study mysql://***@localhost/db cannot be opened" in line
    assert not (tmp_path / "run").exists(), "refused before anything is measured"


def test_two_threads_share_a_bundle(bundle: Path) -> None:
    """Of OpenVINO each thread needs a request of its own."""
    loaded = Bundle(bundle)
    rng = np.random.default_rng(0)
    images: list[Image] = [draw_shapes(rng).pixels for _ in range(4)]
    expected = [loaded.detect(image).scores for image in images]
    failures: list[Any] = []

    def work(index: int) -> None:
        try:
            for _ in range(20):
                assert np.array_equal(loaded.detect(images[index]).scores, expected[index])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_places_are_known_before_anything_is_written(tmp_path: Path) -> None:
    images = [write_image(tmp_path / "a" / "x.jpg"), write_image(tmp_path / "b" / "x.png")]
    images[1] = images[1].rename(images[1].with_suffix(".pgm"))
    targets = outputs_of(images, tmp_path / "out")
    assert [str(t.relative_to(tmp_path / "out")) for t in targets.values()] == [
        "a/x.jpg", "b/x.pgm.jpg"
    ]  # fmt: skip
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="--score"):
        detect(["x"], score=float("nan"))


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_a_video_with_a_name_of_255_bytes(suffix: str, tmp_path: Path) -> None:
    """Its recording's name was too long, and nothing was done."""
    clips = tmp_path / "clips"
    clips.mkdir()
    code = {".mp4": "mp4v", ".avi": "MJPG"}[suffix]
    sources = []
    for stem in ("v" * 251, "v" * 250 + "w", "ä" * 125, "short"):
        clip = write_video(clips / f"x{suffix}", code, 3)
        sources.append(str(clip.rename(clips / f"{stem}{suffix}")))
    result, problems = detect(sources, save=tmp_path / "out")
    assert not problems
    saved = [Path(video["saved"]) for video in result["videos"]]
    assert len(set(saved)) == 4 and all(path.exists() for path in saved)
    assert saved[3].name == ("short.mp4" if suffix == ".mp4" else "short.avi.mp4")
    assert all(len(os.fsencode(path.name)) <= 255 for path in (tmp_path / "out").iterdir())


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from deploy.edge.work import DetectOptions, detect_sources
from supernet.errors import DataError
from tests.fake_videos import BUNDLE
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    detect_sources(BUNDLE, [sys.argv[1]], DetectOptions(save=Path(sys.argv[2])))
except DataError as error:
    print("error:", error)
"""


@pytest.mark.parametrize("limit", [200, 2000])
def test_a_disk_that_fills_while_a_video_is_written(limit: int, tmp_path: Path) -> None:
    """A limit on the size of files fails the same calls as a full disk: of the lines, the video."""
    clip = write_video(tmp_path / "clip.mp4", "mp4v", 60)
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(clip), str(out), str(limit)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"error: cannot write {out}/clip."), lines
    assert "None" not in lines[0]
    assert list(out.iterdir()) == []


def test_a_full_disk_ends_a_recording_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A video was detected on to its end, and its recording refused then."""
    recorder = Recorder(tmp_path, "clip", 25.0)
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr("deploy.edge.recorder.shutil.disk_usage", lambda _: usage)
    image = np.zeros((48, 64, 3), np.uint8)
    with pytest.raises(DataError, match=r"cannot write .*clip\.mp4: no space is left"):
        for number in range(30):
            recorder.add(image, {"frame": number}, None)
    recorder.discard()
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_image_do_not_stop_the_rest(
    network: Detector, tmp_path: Path, images: list[Image]
) -> None:
    export(network, tmp_path / "bundle", images, "onnx")
    folder = tmp_path / "images"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), images[0])
    (folder / "b.png").write_bytes(b"no image")
    cv2.imwrite(str(folder / "c.png"), images[1])
    (folder / "notes.txt").write_text("not looked at")
    loaded = Bundle(tmp_path / "bundle")
    records, broken = detect_files(
        loaded, image_paths(folder), DetectOptions(save=tmp_path / "out")
    )
    assert [Path(record["file"]).name for record in records] == ["a.png", "c.png"]
    assert broken == [str(folder / "b.png")]
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == records
    with pytest.raises(DataError, match="no images in"):
        image_paths(tmp_path / "out" / "..")
    with pytest.raises(DataError, match="no image or folder"):
        image_paths(tmp_path / "nowhere")


def test_drawn_boxes_stay_in_the_image(
    network: Detector, tmp_path: Path, images: list[Image]
) -> None:
    export(network, tmp_path / "bundle", images, "onnx")
    found = Bundle(tmp_path / "bundle").detect(images[0])
    before = images[0].copy()
    drawn = draw(images[0], found, ["a", "b", "c"])
    assert drawn.shape == images[0].shape and (drawn != before).any()
    assert (images[0] == before).all()
