"""Feeding training: the same samples however they are made, and errors that name the file."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from supernet.data.augment import AugmentConfig, _cropped, augment, largest_scale, mosaic
from supernet.data.detection_set import DetectionSet, Record
from supernet.data.ground_truth import GroundTruth
from supernet.data.labelled_image import LabelledImage
from supernet.data.shared_records import SharedRecords
from supernet.data.two_views import TwoViews
from supernet.errors import DataError, HeatError
from supernet.letterbox import PAD_RGB, letterbox, read_image, scale_to_fit
from supernet.train.distributed import Group
from supernet.train.feed import feed, feed_keyed, rare_first
from supernet.train.recipes import TrainConfig
from supernet.train.samples import Keyed, Samples
from supernet.train.two_sets import TwoSets
from tests.short_training import first_images

CONFIG = TrainConfig(epochs=3, batch_size=4, plain_epochs=1, augment=AugmentConfig(mosaic=0.5))
PLAIN = AugmentConfig(brightness=0, contrast=0, saturation=0)
HW = (96, 128)


@pytest.fixture
def data(shapes: Path) -> DetectionSet:
    return first_images(shapes, 13)


def test_processes_share_the_records(data: DetectionSet) -> None:
    """They are handed over as tensors, not copied; what training reads of them is the same."""
    shared = SharedRecords(data.records)
    assert len(shared) == len(data.records) and len(shared[1:3]) == 2
    for one, same in zip(data.records, shared, strict=True):
        assert (one.image_id, one.path, one.height, one.width) == (
            same.image_id, same.path, same.height, same.width,
        )  # fmt: skip
        assert np.array_equal(one.boxes_xyxy, same.boxes_xyxy)
        assert np.array_equal(one.labels, same.labels)
        assert same.weights is None
    assert shared[-1].path == data.records[-1].path
    with pytest.raises(IndexError):
        shared[len(shared)]
    assert len(ForkingPickler.dumps(SharedRecords(data.records * 200))) < 5000


def test_workers_and_processes_change_nothing(data: DetectionSet) -> None:
    alone = list(feed(data, HW, CONFIG, range(2)))
    fed = list(feed(data, HW, CONFIG, range(2), workers=2))
    for (images, targets), (others, theirs) in zip(alone, fed, strict=True):
        assert torch.equal(images, others)
        assert all(
            torch.equal(a.boxes_xyxy, b.boxes_xyxy) for a, b in zip(targets, theirs, strict=True)
        )
    halves = [list(feed(data, HW, CONFIG, range(2), group=Group(rank, 2))) for rank in range(2)]
    for (images, _), (even, _), (odd, _) in zip(alone, *halves, strict=True):
        assert torch.equal(images[::2], even) and torch.equal(images[1::2], odd)


def test_a_teachers_weights_reach_the_loss_by_any_process(data: DetectionSet) -> None:
    weighted = data.of(
        [
            replace(one, weights=np.full(len(one.labels), 0.25, np.float32)) if index % 2 else one
            for index, one in enumerate(data.records)
        ]
    )
    alone, fed = (
        [
            target.shares
            for _, targets in feed(weighted, HW, CONFIG, range(1), workers=workers)
            for target in targets
        ]
        for workers in (0, 1)
    )
    assert any((shares == 0.25).any() for shares in alone)
    assert all(torch.equal(a, b) for a, b in zip(alone, fed, strict=True))


def test_an_image_that_an_epoch_repeats_is_augmented_anew(data: DetectionSet) -> None:
    source = Samples(data.records[:2], HW, CONFIG)
    often = np.array([1.0, 0.0])
    shown = [images for images, _ in feed_keyed(source, CONFIG, range(2), weights=often)]
    views = torch.cat(shown)
    assert len(views) == 4 and len(views.flatten(1).unique(dim=0)) == 4
    more = TwoSets(data.records[:4], data.records[4:5], HW, CONFIG)
    others = [
        image
        for images, batch in feed_keyed(more, CONFIG, range(1), more=1)
        for image, target in zip(images, batch, strict=True)
        if isinstance(target, TwoViews)
    ]
    assert len(others) == len(torch.stack(others).flatten(1).unique(dim=0)) == 4


def test_a_later_start_sees_the_rest(data: DetectionSet) -> None:
    whole = list(feed(data, HW, CONFIG, range(3)))
    rest = list(feed(data, HW, CONFIG, range(1, 3), skip=2))
    assert len(whole) == 9 and len(rest) == 4
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(whole[5:], rest, strict=True))


def test_the_last_epochs_are_plain(data: DetectionSet, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def count(images: list[LabelledImage], *rest: Any) -> LabelledImage:
        seen.append(len(images))
        return mosaic(images, *rest)

    monkeypatch.setattr("supernet.train.samples.mosaic", count)
    config = replace(CONFIG, augment=replace(CONFIG.augment, mosaic=1.0))
    samples = Samples(data.records, HW, config)
    samples.sample(1, 0)
    assert seen == [4]
    samples.sample(2, 0)
    assert seen == [4]


def test_images_drawn_more_often_are_so_beside_others_too(
    data: DetectionSet, tmp_path: Path
) -> None:
    records = (data.records[0], replace(data.records[1], path=tmp_path / "gone.jpg"))
    config = replace(CONFIG, augment=replace(CONFIG.augment, mosaic=1.0, pasted=1.0))
    first = Samples(records, HW, config, np.array([1.0, 0.0]))
    for again in range(10):
        first.sample(0, 0, again)
    with pytest.raises(DataError, match="gone"):
        for again in range(10):
            Samples(records, HW, config).sample(0, 0, again)


def test_trust_is_judged_on_images_that_are_shown_whole_too(data: DetectionSet) -> None:
    """What is learnt without labels depends on what is found on the labelled images."""
    config = replace(CONFIG, augment=replace(CONFIG.augment, mosaic=1.0, pasted=1.0))
    shown = TwoSets(data.records[:4], data.records[4:], HW, config).labelled.config
    assert shown == replace(config, augment=replace(CONFIG.augment, mosaic=0.5, pasted=0.0))


def test_a_file_that_vanishes_is_named(data: DetectionSet, tmp_path: Path) -> None:
    records = (*data.records[:3], replace(data.records[3], path=tmp_path / "gone.jpg"))
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"^cannot decode .*gone\.jpg: see heat data check"):
            list(feed(replace(data, records=records), HW, CONFIG, range(1), workers=workers))


class Faulty(Keyed):
    """A source with an error of its own."""

    def __len__(self) -> int:
        return 4

    def sample(self, epoch: int, index: int, again: int = 0) -> tuple[torch.Tensor, None]:
        raise NotImplementedError("a worker has no such image")


class Deadly(Keyed):
    """Kills the process that makes its samples."""

    def __len__(self) -> int:
        """Return some pictures."""
        return 16

    def sample(self, epoch: int, index: int, again: int = 0) -> tuple[torch.Tensor, GroundTruth]:
        """Die."""
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_dead_worker_is_told() -> None:
    with pytest.raises(HeatError, match="a process that loads images died"):
        list(feed_keyed(Deadly(), CONFIG, range(1), workers=1))


FEEDS = """
import sys
from pathlib import Path
from supernet.data.coco import load_split
from supernet.train.feed import feed
from supernet.train.recipes import TrainConfig
if __name__ == "__main__":
    data = load_split(Path(sys.argv[1]), "train")
    batches = feed(data, (64, 64), TrainConfig(batch_size=4), range(10**6), workers=1)
    next(batches)
    import multiprocessing
    print(multiprocessing.active_children()[0].pid, flush=True)
    for _ in batches:
        pass
"""


def test_an_error_in_a_worker_keeps_its_words() -> None:
    with pytest.raises(RuntimeError, match="a worker has no such image"):
        list(feed_keyed(Faulty(), CONFIG, range(1), workers=1))


def test_no_worker_outlives_a_killed_training(shapes: Path, tmp_path: Path) -> None:
    program = tmp_path / "feeds.py"
    program.write_text(FEEDS)
    command = [sys.executable, str(program), str(shapes)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as training:
        assert training.stdout is not None
        worker = int(training.stdout.readline())
        os.kill(worker, 0)  # it is there
        training.kill()
    with pytest.raises(ProcessLookupError):
        for _ in range(200):
            os.kill(worker, 0)
            time.sleep(0.1)


def test_rare_classes_are_drawn_more_often(data: DetectionSet) -> None:
    few = [replace(r, labels=np.zeros(1, dtype=np.int64)) for r in data.records * 4]
    few[0] = replace(few[0], labels=np.ones(1, dtype=np.int64))
    weights = rare_first(replace(data, records=tuple(few)))
    assert weights[0] == pytest.approx(weights[1] * np.sqrt(0.1 * 52))
    assert weights.sum() == pytest.approx(1)


def test_boxes_of_a_mosaic_follow_the_pixels() -> None:
    """Each of four white squares is inside its box, or was dropped."""
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(30):
        images = []
        for label in range(4):
            pixels = np.zeros((90, 120, 3), dtype=np.uint8)
            pixels[30:50, 40:70] = 255
            box = np.array([[40, 30, 70, 50]], dtype=np.float32)
            images.append(LabelledImage(pixels, box, np.array([label])))
        shown = mosaic(images, HW, PLAIN, rng)
        assert shown.pixels.shape == (*HW, 3) and len(shown.boxes_xyxy) == len(shown.labels)
        assert sorted(set(shown.labels)) == shown.labels.tolist(), "in the order of the images"
        white = (shown.pixels == 255).all(2)
        for x1, y1, x2, y2 in shown.boxes_xyxy:
            part = white[
                max(0, round(y1) + 1) : round(y2) - 1, max(0, round(x1) + 1) : round(x2) - 1
            ]
            assert part.mean() > 0.95
            seen += 1
    assert seen > 40


def test_detrs_crop_and_vertical_flips() -> None:
    config = replace(PLAIN, crop=1.0, flip_vertical=1.0, flip=0.0, shift=0.0, scale=(1.0, 1.0))
    rng = np.random.default_rng(1)
    pixels = np.zeros((200, 300, 3), dtype=np.uint8)
    pixels[100:200] = 255  # the lower half
    boxes = np.array([[0, 100, 300, 200]], dtype=np.float32)
    image = LabelledImage(pixels, boxes, np.array([0]))
    for _ in range(10):
        shown = augment(image, (64, 96), config, rng)
        if len(shown.labels):
            x1, y1, x2, y2 = shown.boxes_xyxy[0].round().astype(int)
            assert (shown.pixels[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1] > 250).mean() > 0.97


def test_large_pictures_are_decoded_small(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (601, 803, 3)).astype(np.uint8)
    for name in ("a.jpg", "a.png"):
        cv2.imwrite(str(tmp_path / name), image)
        for shrink in (2, 4, 8):
            small = read_image(tmp_path / name, (601, 803), shrink)
            assert small is not None
            assert abs(small.shape[0] - 601 / shrink) < 1 and abs(small.shape[1] - 803 / shrink) < 1


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize(
    ("side", "zoom"),
    [((768, 1024), 0.7), ((768, 1024), 1.0), ((300, 400), 1.0), ((1536, 2048), 0.6),
     ((3000, 4000), 0.9)],
)  # fmt: skip
def test_images_shrink_in_training_as_in_evaluation(
    tmp_path: Path, side: tuple[int, int], zoom: float, suffix: str
) -> None:
    """Noise of standard deviation 30 comes out as strong in both, within 10 %."""
    rng = np.random.default_rng(0)
    noise = np.clip(rng.normal(128, 30, (*side, 1)), 0, 255).astype(np.uint8).repeat(3, 2)
    path = tmp_path / f"noise.{suffix}"
    cv2.imwrite(str(path), noise, [cv2.IMWRITE_JPEG_QUALITY, 100])
    hw = (448, 448)
    no_boxes = np.zeros((0, 4), np.float32)
    record = Record(1, path, *side, no_boxes, np.zeros(0, np.int64))
    still = replace(PLAIN, scale=(zoom, zoom), shift=0.0, flip=0.0)
    config = replace(CONFIG, plain_epochs=3, augment=still)
    pixels = Samples([record], hw, config).sample(0, 0)[0].numpy()[..., 0]
    used = pixels[pixels != PAD_RGB[0]]
    image = read_image(path)
    assert image is not None
    wanted = letterbox(image, (round(448 * zoom),) * 2)[0][..., 0]
    seen = wanted[wanted != PAD_RGB[0]]
    assert used.std() == pytest.approx(seen.std(), rel=0.1)


def test_a_crop_is_not_enlarged_from_what_was_decoded_small() -> None:
    """DETR's crop shows a part larger than the whole image would be shown."""
    config = replace(PLAIN, crop=1.0, scale=(1.0, 1.0))
    assert largest_scale((900, 1600), (400, 400), replace(config, crop=0.0)) == 0.25
    rng = np.random.default_rng(0)
    limit = largest_scale((900, 1600), (400, 400), config)
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    image = LabelledImage(np.zeros((900, 1600, 3), np.uint8), *none)
    cuts = [_cropped(image, rng).pixels.shape[:2] for _ in range(300)]
    scales = [scale_to_fit(cut, (400, 400)) for cut in cuts]
    assert max(scales) <= limit and max(scales) > 0.25


def test_boxes_of_enlarged_and_shrunk_images_are_exact() -> None:
    """Sides are whole pixels, and boxes follow the exact factors."""
    rng = np.random.default_rng(0)
    still = replace(PLAIN, scale=(0.83, 0.83), shift=0.0, flip=0.0)
    white = np.full((97, 131, 3), 255, np.uint8)
    whole = np.array([[0, 0, 131, 97]], dtype=np.float32)
    shown = augment(LabelledImage(white, whole, np.array([2])), (64, 64), still, rng)
    rows, columns = np.nonzero((shown.pixels == 255).all(2))
    assert shown.labels.tolist() == [2]
    assert shown.boxes_xyxy[0].tolist() == pytest.approx(
        [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], abs=1e-4
    )


@pytest.mark.parametrize(("stated", "real"), [((40, 60), (80, 120)), ((80, 120), (40, 60)),
                                              ((40, 60), (40, 80))])  # fmt: skip
def test_a_size_that_differs_from_the_annotation_is_one_rule(
    tmp_path: Path, stated: tuple[int, int], real: tuple[int, int]
) -> None:
    """Boxes are shares of the stated size, for training as for evaluation."""
    pixels = np.zeros((*real, 3), np.uint8)
    pixels[: real[0] // 2, : real[1] // 2] = 255
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), pixels)
    image = read_image(path, stated)
    assert image is not None and image.shape[:2] == stated
    corner = np.array([[0, 0, stated[1] / 2, stated[0] / 2]], np.float32)
    record = Record(1, path, *stated, corner, np.zeros(1, np.int64))
    still = replace(PLAIN, scale=(1.0, 1.0), shift=0.0, flip=0.0)
    config = replace(CONFIG, plain_epochs=3, augment=still)
    shown, target = Samples([record], (64, 96), config).sample(0, 0)
    x0, y0, x1, y1 = (round(v) for v in target.boxes_xyxy[0].tolist())
    white = (shown.numpy() > 250).all(2)
    assert white[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1].all() and not white[y1 + 1 :].any()
    evaluated, scale = letterbox(image, (64, 96))
    x0, y0, x1, y1 = (round(v * scale) for v in corner[0].tolist())
    white = (evaluated > 250).all(2)
    assert white[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1].all() and not white[:, x1 + 1 :].any()
