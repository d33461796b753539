"""`heat detect` on what shells and folders give it, and what it never writes over."""

import io
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
import torch
from PIL import Image as PilImage

from deploy.edge.detect import Bundle
from deploy.edge.pixels import as_pixels
from deploy.edge.recorder import Recorder
from deploy.edge.saving import outputs_of, recordings_of
from deploy.edge.sources import image_paths, is_live, is_video, recording_name
from deploy.edge.work import DetectOptions, detect_files
from deploy.export import export_bundle
from deploy.form import Form
from supernet.data.shapes import draw as draw_shapes
from supernet.errors import DataError, UserError
from supernet.heatdetr.detector import Detector
from supernet.letterbox import Image, letterbox, read_image
from tests.command_line import fails, run
from tests.test_videos import BUNDLE, detect, write_video


def files(paths: list[Path], save: Path) -> tuple[list[dict[str, Any]], list[str]]:
    return detect_files(BUNDLE, paths, DetectOptions(save=save))


def write(path: Path, value: int = 50) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ok, data = cv2.imencode(path.suffix, np.full((40, 60, 3), value, np.uint8))
    assert ok
    path.write_bytes(data.tobytes())
    return path


def test_every_image_has_a_place_of_its_own(tmp_path: Path) -> None:
    shots = tmp_path / "shots"
    for name in ("a.png", "a.jpg", "one/x.jpg", "two/x.jpg"):
        write(shots / name)
    out = tmp_path / "out"
    records, broken = files(image_paths(shots / "**" / "*"), out)
    assert not broken and len({record["saved"] for record in records}) == 4
    written = {str(path.relative_to(out)) for path in out.rglob("*.*g")}
    assert written == {"a.png", "a.jpg", "one/x.jpg", "two/x.jpg"}
    again, _ = files(image_paths(shots / "**" / "*"), out)
    assert again == records, "what it wrote itself it may replace"


def test_the_users_images_are_never_replaced(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    originals = [write(photos / name).read_bytes() for name in ("a.jpg", "b.png")]
    (tmp_path / "link").symlink_to(photos)
    for folder in (photos, tmp_path / "link", photos / ".." / "photos"):
        with pytest.raises(DataError, match="is the folder of"):
            detect([str(photos)], save=folder)
    tree = [write(tmp_path / "tree" / name / "x.jpg") for name in "ab"]
    with pytest.raises(DataError, match="is a source"):
        detect([str(path) for path in tree], save=tmp_path / "tree")
    copies = tmp_path / "copies"
    write(copies / "b.png", 70)  # somebody's own, of the same name
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
        source = write(photos / "x.png")
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
    write(photos / "x.jpg")
    records, broken = files(image_paths(photos), tmp_path / "out")
    assert len(records) == 2 and not broken
    saved = read_image(Path(records[0]["saved"]))
    assert saved is not None and saved.shape == (4, 70_000, 3)


def test_any_number_of_sources(tmp_path: Path) -> None:
    """As a shell expands *.jpg; each once, in their order."""
    images = [write(tmp_path / "photos" / f"{name}.jpg") for name in "abc"]
    sources = [str(images[1]), str(images[0]), str(tmp_path / "photos")]
    result, problems = detect(sources)
    names = [Path(record["file"]).name for record in result["detections"]]
    assert names == ["b.jpg", "a.jpg", "c.jpg"] and not problems
    clip = write_video(tmp_path / "clip.mp4", "mp4v", 5)
    result, problems = detect([*sources, str(clip)], save=tmp_path / "out")
    assert result["images"] == 3 and result["videos"][0]["frames"] == 5
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"none")
    result, problems = detect([str(broken), str(clip)])
    assert [video["frames"] for video in result["videos"]] == [5]
    assert len(problems) == 1 and "broken.mp4" in problems[0]
    broken.unlink()
    quoted = [str(tmp_path / "*.mp4"), str(tmp_path / "photos" / "*")]
    result, problems = detect(quoted, save=tmp_path / "quoted")
    assert result["images"] == 3 and result["videos"][0]["frames"] == 5 and not problems
    with pytest.raises(DataError, match="no image or video matches"):
        detect([str(tmp_path / "*.mkv")])
    with pytest.raises(DataError, match="is a file: give a folder"):
        detect([str(clip)], save=images[0])
    with pytest.raises(DataError, match="no image or folder at"):
        detect([*sources, str(tmp_path / "absent.jpg")])


def test_brackets_in_folders_and_patterns(tmp_path: Path) -> None:
    folder = tmp_path / "trip [2024]"
    for name in ("a1.jpg", "b2.jpg", "deep [x]/c3.jpg", "img[1].jpg"):
        write(folder / name)

    def names(*parts: str) -> list[str]:
        return [path.name for path in image_paths(folder.joinpath(*parts))]

    assert names("*.jpg") == ["a1.jpg", "b2.jpg", "img[1].jpg"]
    assert names("[ab]?.jpg") == ["a1.jpg", "b2.jpg"]
    assert names("img[1].jpg") == ["img[1].jpg"]
    assert names("**", "c3.jpg") == ["c3.jpg"]
    assert [p.name for p in image_paths(tmp_path / "*" / "deep [x]" / "*.jpg")] == ["c3.jpg"]
    with pytest.raises(DataError, match="no image matches"):
        names("*.tif")


def test_folders_named_like_a_camera_or_a_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("0", "frames.mp4"):
        write(tmp_path / name / "a.jpg")
        assert not is_video(name) and not is_live(name)
        result, _ = detect([name])
        assert result["images"] == 1
    assert is_live("1") and is_video("rtsp://box/1") and is_video("a.MTS")
    assert recording_name("rtsp://me:secret@box:554/") == "box"
    assert recording_name("rtsp://me:secret@box/live?x=1") == "live"
    assert recording_name("1") == "camera1"


def test_hidden_files_are_no_images_of_a_folder(tmp_path: Path) -> None:
    for name in ("a.jpg", ".part.jpg", ".ipynb_checkpoints/a.jpg"):
        write(tmp_path / name)
    assert [path.name for path in image_paths(tmp_path)] == ["a.jpg"]
    assert [path.name for path in image_paths(tmp_path / "**" / "*.jpg")] == ["a.jpg"]


def test_images_as_python_gives_them(tmp_path: Path) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20] = (200, 10, 10)
    path = tmp_path / "a.png"
    PilImage.fromarray(pixels).save(path)
    for given in (pixels, path, str(path), PilImage.open(path), PilImage.open(path).quantize(8)):
        assert np.abs(as_pixels(given).astype(int) - pixels).max() <= 2
    turned = tmp_path / "b.jpg"
    exif = PilImage.Exif()
    exif[274] = 6  # rotated by 90 degrees
    PilImage.fromarray(pixels).save(turned, exif=exif)
    assert as_pixels(PilImage.open(turned)).shape == as_pixels(turned).shape == (60, 40, 3)
    for wrong, message in (
        ([pixels, pixels], "a list of 2"),
        (None, "a NoneType was given"),
        (np.zeros((0, 0, 3), np.uint8), "without pixels"),
        (np.zeros((0, 5, 3), np.uint8), "without pixels"),
        (tmp_path / "absent.jpg", "no image that can be decoded"),
        (pixels.astype(np.float32), "got float32"),
        (pixels[:, :, 0], r"got uint8 \(40, 60\)"),
        (np.zeros((40, 60, 4), np.uint8), r"got uint8 \(40, 60, 4\)"),
        (pixels[None], r"got uint8 \(1, 40, 60, 3\)"),
        (pixels.astype(bool), "got bool"),
        (pixels.astype(object), "got object"),
        (np.zeros(0), r"got float64 \(0,\)"),
        (torch.from_numpy(pixels), "a Tensor was given"),
        (b"bytes", "a bytes was given"),
        ([], "a list of 0"),
        (tmp_path, "no image that can be decoded"),
        (PilImage.new("RGB", (0, 0)), "without pixels"),
        (PilImage.new("F", (4, 4)), "mode F .* convert it to RGB"),
        (PilImage.new("I", (4, 4)), "mode I .* convert it to RGB"),
        (PilImage.open(io.BytesIO(path.read_bytes()[:60])), "PIL image cannot be decoded"),
    ):
        with pytest.raises(DataError, match=message) as raised:
            as_pixels(wrong)
        assert "\n" not in str(raised.value)


def test_arrays_as_views_and_pil_in_every_mode(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    kept = pixels.copy()
    kept.flags.writeable = False
    for view in (pixels[:, :, ::-1], np.rot90(pixels), pixels[::2, ::2], kept):
        whole = np.ascontiguousarray(view)
        assert np.array_equal(
            letterbox(as_pixels(view), (32, 48))[0], letterbox(whole, (32, 48))[0]
        )
    grey = np.repeat(pixels[:, :, :1], 3, axis=2)
    for mode, expected in (("L", grey), ("LA", grey), ("RGBA", pixels), ("CMYK", pixels)):
        source = PilImage.fromarray(expected if expected is pixels else expected[:, :, 0])
        assert np.abs(as_pixels(source.convert(mode)).astype(int) - expected).max() <= 1
    deep = tmp_path / "deep.png"
    cv2.imwrite(str(deep), np.tile(np.linspace(0, 65535, 60).astype(np.uint16), (40, 1)))
    with PilImage.open(deep) as opened:
        assert opened.mode == "I;16"
        assert np.array_equal(as_pixels(opened), as_pixels(deep)), "not cut off at 255"


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


@pytest.fixture
def bundle(network: Detector, tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    images = [draw_shapes(rng).pixels for _ in range(2)]
    export_bundle(
        network, tmp_path / "bundle", Form(format="openvino"), names=["a", "b", "c"], images=images,
        facts={"trained": False, "target_fps": None},
    )  # fmt: skip
    return tmp_path / "bundle"


def test_the_command_takes_what_a_shell_expands(bundle: Path, tmp_path: Path) -> None:
    images = [write(tmp_path / "photos" / f"{name}.jpg") for name in "abc"]
    out = tmp_path / "out"
    code, found, errors = run("detect", bundle, *images, "--save", out, "--score", 0.0)
    assert code == 0 and found["images"] == 3, errors
    assert json.loads((out / "detections.json").read_text()) == found["detections"]
    (tmp_path / "photos" / "d.jpg").write_bytes(b"none")
    code, found, errors = run("detect", bundle, tmp_path / "photos", "--save", out)
    assert code == 2 and found["images"] == 3 and "d.jpg is no image" in errors
    for name in ("one.mp4", "two.mp4"):
        (tmp_path / name).write_bytes(b"none")
    code, found, errors = run("detect", bundle, *sorted(tmp_path.glob("*.mp4")), "--save", out)
    assert (code, found) == (2, {"videos": []}) and "one.mp4" in errors and "two.mp4" in errors
    line = fails(2, "detect", bundle, "rtsp://me:secret@127.0.0.1:1/x", "--save", out)
    assert "secret" not in line and "rtsp://***@127.0.0.1:1/x" in line


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
    images = [write(tmp_path / "a" / "x.jpg"), write(tmp_path / "b" / "x.png")]
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
from tests.test_videos import BUNDLE
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
