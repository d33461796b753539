"""`heat detect` on what shells and folders give it."""

import json
from pathlib import Path

import pytest

from deploy.edge.sources import image_paths, is_live, is_video, recording_name
from supernet.errors import DataError
from tests.command_line import fails, run
from tests.fake_videos import detect, write_image, write_video


def test_any_number_of_sources(tmp_path: Path) -> None:
    """As a shell expands *.jpg; each once, in their order."""
    images = [write_image(tmp_path / "photos" / f"{name}.jpg") for name in "abc"]
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
        write_image(folder / name)

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
        write_image(tmp_path / name / "a.jpg")
        assert not is_video(name) and not is_live(name)
        result, _ = detect([name])
        assert result["images"] == 1
    assert is_live("1") and is_video("rtsp://box/1") and is_video("a.MTS")
    assert recording_name("rtsp://me:secret@box:554/") == "box"
    assert recording_name("rtsp://me:secret@box/live?x=1") == "live"
    assert recording_name("1") == "camera1"


def test_hidden_files_are_no_images_of_a_folder(tmp_path: Path) -> None:
    for name in ("a.jpg", ".part.jpg", ".ipynb_checkpoints/a.jpg"):
        write_image(tmp_path / name)
    assert [path.name for path in image_paths(tmp_path)] == ["a.jpg"]
    assert [path.name for path in image_paths(tmp_path / "**" / "*.jpg")] == ["a.jpg"]


def test_the_command_takes_what_a_shell_expands(bundle: Path, tmp_path: Path) -> None:
    images = [write_image(tmp_path / "photos" / f"{name}.jpg") for name in "abc"]
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
