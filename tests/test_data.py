import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from supernet.data.augment import AugmentConfig, augment
from supernet.data.cells import draw as draw_cells
from supernet.data.cells import make_cells
from supernet.data.coco import load_split, resolve_split
from supernet.data.evaluate import evaluate, score_rows
from supernet.data.labelled_image import LabelledImage
from supernet.data.shapes import make_shapes
from supernet.errors import DataError
from supernet.letterbox import PAD_RGB, boxes_to_image, letterbox, read_image

from .conftest import shared


def write_set(root: Path, annotations: list[dict[str, Any]], split: str = "train") -> Path:
    """Write two 40x60 images, one grey, with sparse category ids 3 and 90."""
    folder = root / split
    folder.mkdir(parents=True)
    pixels = np.full((40, 60, 3), 90, dtype=np.uint8)
    cv2.imwrite(str(folder / "a.jpg"), pixels)
    cv2.imwrite(str(folder / "grey.jpg"), pixels[:, :, 0])
    content = {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 60, "height": 40},
            {"id": 99, "file_name": "grey.jpg", "width": 60, "height": 40},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
        "annotations": [{"id": i + 1, "iscrowd": 0, **a} for i, a in enumerate(annotations)],
    }
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def box(*bbox: float, **more: Any) -> dict[str, Any]:
    return {"image_id": 7, "category_id": 90, "bbox": list(bbox), **more}


def test_sparse_ids_grey_images_and_images_without_boxes(tmp_path: Path) -> None:
    data = load_split(write_set(tmp_path, [box(1, 2, 10, 20)]), "train")
    assert data.names == ("car", "toothbrush") and data.category_ids == (3, 90)
    assert data.records[0].labels.tolist() == [1]
    assert data.records[0].boxes_xyxy.tolist() == [[1, 2, 11, 22]]
    assert len(data.records[1].labels) == 0
    grey = read_image(data.records[1].path)
    assert grey is not None and grey.shape == (40, 60, 3)
    assert data.problems == ()


def test_crowds_are_evaluated_but_not_trained_on(tmp_path: Path) -> None:
    data = load_split(write_set(tmp_path, [box(0, 0, 30, 30, iscrowd=1), box(1, 1, 5, 5)]), "train")
    assert data.num_crowd == 1 and len(data.records[0].labels) == 1
    assert len(data.ground_truth["annotations"]) == 2


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        (box(5, 5, 0, 10), "degenerate box"),
        (box(5, 5, -3, 10), "degenerate box"),
        (box(5, 5, float("nan"), 10), "degenerate box"),
        (box(50, 30, 30, 30), "box leaves the image"),
        (box(100, 100, 5, 5), "box outside the image"),
        (box(1, 1, 5, 5) | {"category_id": 4}, "unknown class"),
        (box(1, 1, 5, 5) | {"image_id": 8}, "unknown image"),
        ({"image_id": 7, "category_id": 3}, "broken annotation"),
        (box(1, 1, 5), "broken annotation"),
    ],
)
def test_problems_are_reported(tmp_path: Path, annotation: dict[str, Any], kind: str) -> None:
    data = load_split(write_set(tmp_path, [annotation]), "train")
    assert kind in {problem.kind for problem in data.problems}
    kept = data.records[0].boxes_xyxy
    assert len(kept) == (1 if kind == "box leaves the image" else 0)
    assert kept.max(initial=0) <= 60


def test_boxes_that_touch_the_border_are_fine(tmp_path: Path) -> None:
    data = load_split(write_set(tmp_path, [box(0, 0, 60, 40)]), "train")
    assert data.problems == () and len(data.records[0].labels) == 1


def test_missing_images_are_reported(tmp_path: Path) -> None:
    root = write_set(tmp_path, [])
    (root / "train" / "a.jpg").unlink()
    data = load_split(root, "train")
    assert [problem.kind for problem in data.problems] == ["missing image"]
    assert len(data.records) == 1


def test_official_split_names(tmp_path: Path) -> None:
    root = write_set(tmp_path, [], "train2017")
    assert resolve_split(root, "train") == "train2017"
    with pytest.raises(DataError, match="no split 'val': it has train2017"):
        resolve_split(root, "val")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON"),
        ('{"images": [', "not valid JSON"),
        ("[]", "no list images"),
        ('{"images": [], "annotations": []}', "no list categories"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "lacks one of"),
        ('{"images": [], "annotations": [], "categories": []}', "categories must be there"),
    ],
)
def test_broken_annotation_files(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text(content)
    with pytest.raises(DataError, match=message):
        load_split(tmp_path, "train")


def test_folders_that_are_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data folder"):
        load_split(tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match="COCO format"):
        load_split(tmp_path, "train")


def test_exif_rotation_follows_the_annotation(tmp_path: Path) -> None:
    """An image stored 40x60 with orientation 6 is 60x40 to a viewer."""
    ok, data = cv2.imencode(".jpg", np.zeros((40, 60, 3), dtype=np.uint8))
    assert ok
    tiff = b"MM\x00\x2a\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"
    payload = b"Exif\x00\x00" + tiff + b"\x00\x00\x00\x00"
    segment = b"\xff\xe1" + (len(payload) + 2).to_bytes(2, "big") + payload
    path = tmp_path / "rotated.jpg"
    path.write_bytes(data.tobytes()[:2] + segment + data.tobytes()[2:])
    for expected, shape in ((None, (60, 40)), ((60, 40), (60, 40)), ((40, 60), (40, 60))):
        image = read_image(path, expected)
        assert image is not None and image.shape[:2] == shape


def test_files_that_are_no_image(tmp_path: Path) -> None:
    for name, content in (("a.jpg", b""), ("b.jpg", b"hello"), ("c.jpg", b"\xff\xd8\xff\xe0junk")):
        (tmp_path / name).write_bytes(content)
        assert read_image(tmp_path / name) is None
    assert read_image(tmp_path / "none.jpg") is None


def test_letterbox_keeps_the_ratio_and_pads_right_and_bottom() -> None:
    image = np.full((50, 100, 3), 7, dtype=np.uint8)
    pixels, scale = letterbox(image, (64, 64))
    assert scale == 0.64 and pixels.shape == (64, 64, 3)
    assert (pixels[:32] == 7).all() and (pixels[32:] == PAD_RGB).all()
    back = boxes_to_image([[0, 0, 64, 32], [-5, -5, 80, 80]], scale, (50, 100))
    assert back.tolist() == [[0, 0, 100, 50], [0, 0, 100, 50]]


def test_augmented_boxes_follow_the_pixels() -> None:
    """A white square on black is still inside its box, whatever happens to the picture."""
    config = AugmentConfig(brightness=0, contrast=0, saturation=0)
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(50):
        pixels = np.zeros((90, 120, 3), dtype=np.uint8)
        pixels[30:50, 40:70] = 255
        start = np.array([[40, 30, 70, 50]], dtype=np.float32)
        image = LabelledImage(pixels, start, np.array([1]))
        shown = augment(image, (96, 128), config, rng)
        pixels, boxes = shown.pixels, shown.boxes_xyxy
        assert pixels.shape == (96, 128, 3) and shown.labels.tolist() == [1] * len(boxes)
        rows, columns = np.nonzero((pixels == 255).all(2))
        if not len(boxes) or not len(rows):
            continue
        seen += 1
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(boxes[0] - found).max() <= 2.0
    assert seen > 30


@pytest.mark.parametrize("image_hw", [(90, 120), (120, 90), (50, 100)])
def test_without_augmentation_training_sees_what_evaluation_sees(image_hw: tuple[int, int]) -> None:
    """The same pixels in the same place, epoch after epoch, and the objects with them."""
    none = AugmentConfig(
        flip=0, scale=(1.0, 1.0), shift=0, shifted=0, brightness=0, contrast=0, saturation=0
    )
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (*image_hw, 3), dtype=np.uint8)
    boxes = np.array([[10, 20, 40, 45]], dtype=np.float32)
    expected, scale = letterbox(pixels, (96, 96))
    for _ in range(3):
        shown = augment(LabelledImage(pixels, boxes, np.array([1])), (96, 96), none, rng)
        assert (shown.pixels == expected).all()
        assert shown.boxes_xyxy == pytest.approx(boxes * scale, abs=0.51)


def test_shapes_are_deterministic(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_shapes(tmp_path / name, train=3, val=2, seed=5)
    one, two = (load_split(tmp_path / name, "train") for name in ("one", "two"))
    for a, b in zip(one.records, two.records, strict=True):
        assert a.path.read_bytes() == b.path.read_bytes()
        assert (a.boxes_xyxy == b.boxes_xyxy).all()
    assert one.problems == ()


@pytest.mark.parametrize("make", [make_shapes, make_cells])
def test_drawn_sets_are_the_same_in_both_formats(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "coco", train=3, val=2)
    make(tmp_path / "yolo", train=3, val=2, labels="yolo")
    for split in ("train", "val"):
        coco, yolo = (load_split(tmp_path / name, split) for name in ("coco", "yolo"))
        assert coco.names == yolo.names and coco.problems == yolo.problems == ()
        for a, b in zip(coco.records, yolo.records, strict=True):
            assert a.path.read_bytes() == b.path.read_bytes()
            np.testing.assert_allclose(a.boxes_xyxy, b.boxes_xyxy, atol=1e-3)
            assert (a.labels == b.labels).all()


def test_cells_lie_in_their_boxes() -> None:
    """Each box is tight around something darker than the light around it, and all kinds occur."""
    rng, seen = np.random.default_rng(0), np.zeros(3, int)
    for _ in range(20):
        image = draw_cells(rng)
        height, width = image.pixels.shape[:2]
        assert (image.boxes_xyxy >= 0).all() and len(image.boxes_xyxy) > 0
        assert (image.boxes_xyxy[:, 2:] <= (width, height)).all()
        light = float(np.quantile(image.pixels[:, :, 1], 0.9))
        for (x1, y1, x2, y2), label in zip(image.boxes_xyxy.astype(int), image.labels, strict=True):
            seen[label] += 1
            assert image.pixels[y1:y2, x1:x2, 1].min() < 0.8 * light
            assert 6 <= max(x2 - x1, y2 - y1) <= 120
    assert (seen > 5).all() and seen[0] > seen[1]


@pytest.mark.parametrize("name", ["bccd", "aquarium", "coco_tiny"])
def test_ground_truth_scores_one(name: str) -> None:
    """The real sets load without problems; their own boxes as detections give AP 1."""
    data = load_split(shared(name), "val")
    assert [p for p in data.problems if p.kind != "box leaves the image"] == []
    rows = [
        {key: item[key] for key in ("image_id", "category_id", "bbox")} | {"score": 1.0}
        for item in data.ground_truth["annotations"]
        if not item["iscrowd"]
    ]
    metrics = score_rows(rows, data)
    assert metrics.ap == metrics.ap50 == metrics.ar100 == 1.0


def test_evaluation_maps_boxes_and_classes(shapes: Path) -> None:
    data = load_split(shapes, "val")
    index = {record.path: record for record in data.records}
    order = iter(data.records)

    def detect(image: Any) -> Any:
        record = index[next(order).path]
        return record.boxes_xyxy, np.ones(len(record.labels), np.float32), record.labels

    assert evaluate(detect, data, progress=False).ap == pytest.approx(1.0)
    nothing = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert evaluate(lambda image: nothing, data, progress=False).ap == 0.0


def test_corners_in_place_of_sides_are_refused(tmp_path: Path) -> None:
    boxes = [box(5 + i, 4 + i, 45 + i, 30 + i) for i in range(10)]
    with pytest.raises(DataError, match=r"look like corners .* 6 of 10 would leave"):
        load_split(write_set(tmp_path / "a", boxes), "train")
    right = [box(5 + i, 4 + i, 20, 15) for i in range(10)]
    assert load_split(write_set(tmp_path / "b", right), "train").problems == ()
