"""Image files as people have them, and `heat data check` on whole sets."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from deploy.edge.pixels import as_pixels
from heat.views.charts import plain
from heat.views.learning import draw_confusion, draw_precision
from heat.views.tables import check_data
from supernet.data.average_precision import score
from supernet.data.check import image_problems
from supernet.data.coco import load_split
from supernet.data.image_files import image_size, list_images
from supernet.errors import DataError
from supernet.image_header import avif_orientation, is_avif
from supernet.letterbox import Image as Pixels
from supernet.letterbox import letterbox, read_image
from supernet.train.recipes import TrainConfig
from supernet.train.samples import Samples

from .test_annotations import note
from .test_annotations import write as write_coco


@pytest.mark.parametrize(
    "suffix", [".jpg", ".jfif", ".png", ".webp", ".tif", ".gif", ".avif", ".jp2", ".ppm", ".bmp"]
)
def test_every_kind_of_file_that_is_listed_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix.upper()}"
    kind = "JPEG" if suffix == ".jfif" else None
    try:
        Image.new("RGB", (60, 40), (250, 10, 10)).save(path, format=kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {suffix}")
    assert list_images(tmp_path) == [path] and image_size(path) == (40, 60)
    image = read_image(path)
    assert image is not None and image.shape == (40, 60, 3)
    assert np.abs(image[20, 30].astype(int) - (250, 10, 10)).max() < 15


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    for name in ("a.jpg", ".ipynb_checkpoints/a-checkpoint.jpg", "._a.jpg", "below/b.png", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in list_images(tmp_path)] == ["a.jpg", "b.png"]


@pytest.mark.parametrize("kind", ["TIFF", "JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(tmp_path: Path, kind: str, orientation: int) -> None:
    image = Image.new("RGB", (60, 40))
    exif = image.getexif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind.lower()}"
    image.save(path, format=kind, exif=exif)
    pixels = read_image(path)
    assert pixels is not None and image_size(path) == pixels.shape[:2]
    assert pixels.shape[:2] == ((60, 40) if orientation >= 5 else (40, 60))


def write_avif(path: Path, orientation: int) -> Path:
    """Write an image of four colours, 60x40 as stored, that is to be turned."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :, 0], pixels[:, :30, 2] = 200, 200
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    path.parent.mkdir(exist_ok=True)
    try:
        image.save(path, exif=exif, quality=95)
    except (KeyError, OSError):
        pytest.skip("this Pillow writes no AVIF")
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_avif_file_is_the_same_in_every_reader(tmp_path: Path, orientation: int) -> None:
    path = write_avif(tmp_path / "train" / "a.avif", orientation)
    with Image.open(path) as opened:
        seen = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    height, width = seen.shape[:2]
    assert (height, width) == ((60, 40) if orientation >= 5 else (40, 60)) == image_size(path)
    # The size is stated as it is to be seen, not at all, or as it is stored.
    sizes = [(width, height), (None, None), (60, 40)]
    for stated in sizes:
        image = {"id": 1, "file_name": "a.avif"}
        if stated[0]:
            image |= {"width": stated[0], "height": stated[1]}
        data = load_split(write_coco(tmp_path, [note()], images=[image]), "train")
        (record,) = data.records
        as_seen = stated != (60, 40) or orientation < 5
        assert (record.height, record.width) == ((height, width) if as_seen else (40, 60))
        kinds = [problem.kind for problem in image_problems(data)]
        assert kinds == ([] if as_seen else ["annotated on stored pixels"])
        training = Samples(data.records, (64, 64), TrainConfig())
        read = [
            read_image(path, (record.height, record.width)),
            training.load(training.records[0]).pixels,
        ]
        stored = as_pixels(path) if as_seen else read_image(path, turned=False)
        for pixels in (*read, stored):
            assert pixels is not None and pixels.shape[:2] == (record.height, record.width)
            if as_seen:
                assert np.abs(pixels.astype(int) - seen).max() <= 3
    half = read_image(path, shrink=2)
    assert half is not None and half.shape[:2] == (height // 2, width // 2)


def test_an_avif_file_that_is_cut_or_damaged_raises_nothing(tmp_path: Path) -> None:
    content = write_avif(tmp_path / "a.avif", 6).read_bytes()
    assert avif_orientation(content) == (3, None) and is_avif(content)
    for end in range(0, len(content), 7):
        assert avif_orientation(content[:end]) in ((3, None), (0, None))
        (tmp_path / "cut.avif").write_bytes(content[:end])
        read_image(tmp_path / "cut.avif")
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        damaged[int(rng.integers(0, 300))] = int(rng.integers(0, 256))
        avif_orientation(bytes(damaged))
    assert not is_avif(b"") and not is_avif(b"\0\0\0\x10ftypheic\0\0\0\0mif1")


def test_a_tiff_annotated_as_it_is_stored_is_reported(tmp_path: Path) -> None:
    """OpenCV always turns a TIFF; a JPEG annotated as it is stored is read so."""
    image = Image.new("RGB", (200, 100))
    exif = image.getexif()
    exif[0x0112] = 6
    files = []
    for index, name in enumerate(("a.tif", "b.jpg"), 1):
        (tmp_path / "train").mkdir(exist_ok=True)
        image.save(tmp_path / "train" / name, exif=exif)
        files.append({"id": index, "file_name": name, "width": 200, "height": 100})
    root = write_coco(tmp_path, [note()], images=files)
    found = image_problems(load_split(root, "train"))
    assert [(p.kind, Path(p.where).name) for p in found] == [
        ("size differs", "a.tif"),
        ("annotated on stored pixels", "b.jpg"),
    ]


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_values_of_16_bit_files_are_scaled_by_the_bits_in_use(
    tmp_path: Path, suffix: str, bits: int
) -> None:
    ramp = np.linspace(0, 2**bits - 1, 60).round().astype(np.uint16)
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), np.tile(ramp, (40, 1)))
    image = read_image(path)
    assert image is not None
    assert np.abs(image[0, :, 0] - np.linspace(0, 255, 60)).max() < 1.01


def test_the_size_of_a_very_large_image_is_read(tmp_path: Path) -> None:
    """Whatever Pillow takes for a decompression bomb; whether it is decoded is another rule."""
    path = tmp_path / "large.png"
    Image.new("1", (20_000, 10_000)).save(path)
    limit = Image.MAX_IMAGE_PIXELS
    assert image_size(path) == (10_000, 20_000)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_an_empty_image_is_refused() -> None:
    for shape in ((0, 10, 3), (10, 0, 3)):
        with pytest.raises(DataError, match="the image is empty"):
            letterbox(np.zeros(shape, np.uint8), (64, 64))


def test_data_check_finds_what_is_wrong_with_files(tmp_path: Path) -> None:
    root = write_coco(tmp_path, [note(), note(2, 7)])
    cv2.imwrite(str(root / "train" / "a.png"), np.zeros((50, 100, 3), np.uint8))
    (root / "train" / "b.png").write_bytes(b"no image")
    found = image_problems(load_split(root, "train"))
    assert [(p.kind, Path(p.where).name) for p in found] == [
        ("size differs", "a.png"), ("image cannot be decoded", "b.png"),
    ]  # fmt: skip
    assert "stated 200x100, is 100x50: boxes are taken as shares" in found[0].detail


def test_data_check_prints_names_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [{"id": 3, "name": "car [small]"}, {"id": 7, "name": "[/x]"}]
    root = write_coco(tmp_path / "[/y]", [note(), note(2, 8)], categories=names)
    write_coco(root, [note(2)], "val", categories=names[::-1])
    write_coco(root, [note(2)], "test", categories=[{"id": 3, "name": "bus"}])
    result = check_data(root)
    shown = capsys.readouterr().err
    assert "car [small]" in shown and "[/x]" in shown and "[/y]" in shown
    assert result["splits"]["train"]["negative"] == 1
    kinds = {(p["split"], p["kind"]) for p in result["problems"]}
    assert kinds == {("train", "unknown class"), ("test", "classes differ from train")}


def test_data_check_of_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco(tmp_path / "y", [note()])
    monkeypatch.chdir(tmp_path / "y")
    assert check_data(Path())["splits"]["train"]["boxes"] == 1


def test_names_are_not_read_as_mathematics(tmp_path: Path) -> None:
    names = ("$x^{$", "_hidden")
    head = {"categories": [{"id": i, "name": n} for i, n in zip((3, 7), names, strict=True)]}
    data = load_split(write_coco(tmp_path, [note(), note(2, 7)], **head), "train")
    rows: list[dict[str, Any]] = [{**note(), "score": 0.5}]
    draw_confusion(np.ones((3, 3), np.int64), names, tmp_path / "confusion.svg")
    draw_precision(score(rows, data), names, tmp_path / "precision.svg")
    assert plain("_hidden") == " _hidden" and plain("$") == r"\$"


def test_a_thousand_classes_are_drawn_at_a_bounded_size(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(1000)]
    path = draw_confusion(np.eye(1001, dtype=np.int64), names, tmp_path / "confusion.svg")
    assert path.stat().st_size < 20 * 2**20


def test_the_check_counts_as_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr("supernet.data.check.Progress.advance", lambda *_: seen.append(1))
    check_data(write_coco(tmp_path, [note()]))
    assert len(seen) == 2


def test_a_lettered_file_name_is_read_back(tmp_path: Path, images: list[Pixels]) -> None:
    path = tmp_path / "größe 1.png"
    ok, data = cv2.imencode(".png", images[0][:, :, ::-1])
    assert ok
    path.write_bytes(data.tobytes())
    image = read_image(path)
    assert image is not None and (image == images[0]).all()
