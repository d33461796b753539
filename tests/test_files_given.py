"""Files that commands are given: what is never written over, and names that mislead FFmpeg."""

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as PilImage

from deploy.edge.capture import Source
from deploy.edge.saving import write_whole
from deploy.edge.sources import is_live, is_video
from heat.views.charts import draw_stacks
from heat.views.outputs import is_drawing, is_pack, is_result
from supernet.atomic import check_replaceable, write_text
from supernet.errors import DataError, UserError
from tests.command_line import fails
from tests.fake_videos import detect, write_video


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((48, 64, 3), 50, np.uint8))
    return path


@pytest.mark.parametrize("kind", ["fifo", "folder", "link to fifo"])
def test_only_a_file_is_renamed_over(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    if kind == "folder":
        place.mkdir()
    else:
        os.mkfifo(tmp_path / "pipe")
        place.symlink_to(tmp_path / "pipe")
        place = place if kind != "fifo" else tmp_path / "pipe"
    before = place.stat()
    for error, attempt in (
        (UserError, lambda: write_text(place, "x")),
        (DataError, lambda: write_whole(place, b"x")),
        (UserError, lambda: check_replaceable(place, "--json", is_result)),
    ):
        with pytest.raises(error, match=r"is a (folder|device or a pipe)"):
            attempt()
    assert place.stat() == before
    assert not list(tmp_path.glob(".*"))


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "real" / "file.txt")
    for text in ("new", "newer"):
        write_text(tmp_path / "link.txt", text)
        assert (tmp_path / "real" / "file.txt").read_text() == text
    assert (tmp_path / "link.txt").is_symlink()


@pytest.mark.parametrize("place", ["/dev/none", "/proc/self/fd/none"])
def test_nothing_is_written_among_devices(place: str) -> None:
    with pytest.raises(UserError, match="is a device or a pipe"):
        check_replaceable(Path(place), "--json", is_result)


OTHERS = {
    "notes.json": b'{"a": 1}',
    "labels.json": b'{"images": [], "annotations": [], "categories": []}',
    "shot.jpg": b"\xff\xd8\xff\xe0",
    "list.json": b"[1]",
    "drawing.svg": b"<?xml version='1.0'?><svg><dc:title>Inkscape</dc:title></svg>",
    "archive.zip": b"PK\x05\x06" + bytes(18),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("is_ours", [is_result, is_drawing, is_pack])
def test_files_of_others_are_not_replaced(tmp_path: Path, name: str, is_ours: Any) -> None:
    (tmp_path / name).write_bytes(OTHERS[name])
    with pytest.raises(UserError, match="is there already"):
        check_replaceable(tmp_path / name, "--option", is_ours)


def test_what_heat_wrote_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "q" / "1.jpg")
    clip = write_video(tmp_path / "clip.avi", "MJPG", 5)
    for sources in ([str(tmp_path / "q")], [str(clip)], [str(clip), str(tmp_path / "q")]):
        result, _ = detect(sources)
        write_text(tmp_path / "result.json", json.dumps(result))
        check_replaceable(tmp_path / "result.json", "--json", is_result)
    draw_stacks({"a": 1.0, "b": 2.0}, "title", tmp_path / "a.svg")
    check_replaceable(tmp_path / "a.svg", "--picture", is_drawing)
    (tmp_path / "empty").touch()  # mktemp
    check_replaceable(tmp_path / "empty", "--json", is_result)


def test_commands_refuse_before_any_work(tmp_path: Path) -> None:
    """The bundle and the models are missing, and not even looked for."""
    image = write(tmp_path / "q" / "1.jpg")
    before = image.read_bytes()
    none = tmp_path / "none"
    assert "is there already" in fails(2, "detect", none, image, "--json", image)
    assert "is a folder" in fails(2, "detect", none, image, "--json", tmp_path)
    assert "is no folder" in fails(2, "detect", none, image, "--json", image / "x.json")
    model = tmp_path / "static.onnx"
    model.write_bytes(b"model")
    assert "is there already" in fails(2, "bench", model, "--picture", model)
    size = ["--space", "micro", "--input-size", "64x64", "--out", tmp_path / "run"]
    assert "is there already" in fails(2, "profile", "--pack", model, *size)
    assert image.read_bytes() == before and model.read_bytes() == b"model"
    assert "already holds train" in fails(
        2, "data", "shapes", write(none / "train" / "a.jpg").parents[1]
    )


@pytest.mark.parametrize("kind", ["images", "video"])
def test_save_below_a_file_names_that_file(tmp_path: Path, kind: str) -> None:
    blocked = tmp_path / "outf"
    blocked.write_text("x")
    source = write(tmp_path / "q" / "1.jpg")
    if kind == "video":
        source = write_video(tmp_path / "clip.avi", "MJPG", 5)
    with pytest.raises(DataError, match="outf, which is a file") as caught:
        detect([str(source)], save=blocked / "deep")
    assert "part" not in str(caught.value)


def test_classes_of_other_labels_stay(tmp_path: Path) -> None:
    image = write(tmp_path / "q" / "1.jpg")
    classes = tmp_path / "out" / "labels" / "classes.txt"
    classes.parent.mkdir(parents=True)
    classes.write_text("cat\n")
    with pytest.raises(DataError, match="has other classes"):
        detect([str(image)], save=tmp_path / "out", labels="yolo")
    classes.write_text("thing\n")
    detect([str(image)], save=tmp_path / "out", labels="yolo")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "labels").write_text("x")
    with pytest.raises(DataError, match="labels, which is a file"):
        detect([str(image)], save=tmp_path / "other", labels="yolo")


@pytest.mark.parametrize("name", ["12:30.mp4", "2024-01-01T12:30:00.mp4", "file:x.mp4"])
def test_names_that_look_like_protocols(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_video(tmp_path / "a.mp4", "mp4v", 10).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    result, problems = detect([name], save=Path("o:9"))
    assert result["frames"] == 10 and not problems
    assert Path(result["saved"]).parent == Path("o:9") and Path(result["saved"]).stat().st_size
    opened = Source(name)
    assert opened.fps == 25.0
    opened.close()


def test_a_file_url_is_a_file(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "a clip.mp4", "mp4v", 10)
    for start in ("file://", "file://localhost", "FILE://"):
        source = f"{start}{tmp_path}/a%20clip.mp4"
        assert not is_live(source) and is_video(source)
        result, _ = detect([source], save=tmp_path / "out")
        assert (result["source"], result["frames"]) == (str(clip), 10)
        assert result["dropped"] == 0 and result["saved"] == str(tmp_path / "out" / "a clip.mp4")
        opened = Source(source)
        assert not opened.live and opened.frames == 10
        opened.close()
    image = write(tmp_path / "q" / "1.png")
    assert detect([image.as_uri()])[0]["images"] == 1


@pytest.mark.parametrize("number", ["99999999999999999999", "9" * 5000, "2147483648"])
def test_a_number_of_no_camera(number: str) -> None:
    with pytest.raises((DataError, OSError)) as caught:
        detect([number])
    assert "\n" not in str(caught.value)


def test_an_empty_source() -> None:
    for sources in ([""], ["a.jpg", ""]):
        with pytest.raises(DataError, match="a source is empty"):
            detect(sources)


def test_videos_beside_images_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "both" / "1.jpg")
    for folder in ("both", "videos"):
        (tmp_path / folder).mkdir(exist_ok=True)
        write_video(tmp_path / folder / "clip.avi", "MJPG", 5)
    assert detect([str(tmp_path / "both")])[0]["images"] == 1
    warned = capsys.readouterr().err
    assert warned.count("\n") == 1 and "clip.avi: videos in a folder are left out" in warned
    with pytest.raises(DataError, match=r"no images in .*, but 1 video\(s\), clip\.avi first"):
        detect([str(tmp_path / "videos")])
    found, _ = detect([str(tmp_path / "both" / "*")])
    assert len(found["videos"]) == 1 and not capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["webp", "png", "tif", "avif"])
def test_several_images_in_a_file_are_reported(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [PilImage.new("RGB", (64, 48), (40 * n, 0, 0)) for n in range(3)]
    path = tmp_path / f"a.{suffix}"
    try:
        frames[0].save(path)
        one = detect([str(path)])
        assert not capsys.readouterr().err
        frames[0].save(path, save_all=True, append_images=frames[1:])
    except (OSError, ValueError, KeyError):
        pytest.skip(f"this Pillow writes no {suffix}")
    assert one[0]["images"] == detect([str(path)])[0]["images"] == 1
    warned = capsys.readouterr().err
    assert warned.count("\n") == 1 and f"a.{suffix}: several images in one file" in warned


def test_options_without_effect_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_video(tmp_path / "clip.avi", "MJPG", 5)
    image = write(tmp_path / "q" / "1.jpg")
    detect([str(clip)], save=tmp_path / "out", labels="coco")
    assert "--labels coco is for images" in capsys.readouterr().err
    detect([str(image)], track=True, limit=2)
    warned = capsys.readouterr().err
    assert "--track is for videos" in warned and "--frames is for videos" in warned
    detect([str(image), str(clip)], track=True)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["divx", "f4v", "h264", "hevc", "mxf", "nut", "rm"])
def test_suffixes_of_videos(suffix: str) -> None:
    assert is_video(f"clip.{suffix}") and is_video(f"CLIP.{suffix.upper()}")
