"""Objects pasted from another image: boxes follow the pixels, and little is hidden by them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from supernet.data.augment import AugmentConfig
from supernet.data.coco import load_split
from supernet.data.greedy_match import shares_within
from supernet.data.labelled_image import LabelledImage
from supernet.data.pasting import MOST_HIDDEN, paste_objects
from supernet.train.recipes import SMALL
from supernet.train.samples import Samples

HW = (96, 128)


def drawn(boxes: list[list[int]], labels: list[int], shade: int) -> LabelledImage:
    """Return a black image with a filled rectangle for each box, the first the darkest."""
    pixels = np.zeros((*HW, 3), np.uint8)
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        pixels[y0:y1, x0:x1] = shade + number
    return LabelledImage(
        pixels, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64)
    )


def test_boxes_are_where_the_objects_are() -> None:
    image = drawn([[10, 10, 40, 40]], [0], 50)
    donor = drawn([[0, 0, 12, 20], [30, 30, 61, 50], [5, 60, 30, 90]], [1, 2, 2], 200)
    seen = set()
    for seed in range(40):
        found = paste_objects(image, donor, np.random.default_rng(seed))
        assert found.pixels is not image.pixels and found.frame is None
        assert found.boxes_xyxy.dtype == np.float32
        assert (found.boxes_xyxy[0] == image.boxes_xyxy[0]).all()
        if len(found.labels) == 2:  # no other lies on it
            x0, y0, x1, y1 = found.boxes_xyxy[1].astype(int)
            number = int(found.pixels[y0, x0, 0]) - 200
            assert (found.pixels[y0:y1, x0:x1] == 200 + number).all()
            assert found.labels[1] == donor.labels[number]
            w, h = donor.boxes_xyxy[number, 2:] - donor.boxes_xyxy[number, :2]
            assert (x1 - x0, y1 - y0) == (w, h)
        for index in range(1, len(found.labels)):
            before, after = found.boxes_xyxy[: index + 1], found.boxes_xyxy[index + 1 :]
            assert (shares_within(before, after).sum(1) <= MOST_HIDDEN).all()
        assert (shares_within(image.boxes_xyxy, found.boxes_xyxy[1:]).sum(1) <= MOST_HIDDEN).all()
        seen |= set(found.labels[1:].tolist())
    assert seen == {1, 2}
    assert (image.pixels[10:40, 10:40] == 50).all() and len(image.labels) == 1


def test_classes_are_as_likely_however_many_objects_they_have() -> None:
    boxes = [[8 * i, 0, 8 * i + 6, 6] for i in range(16)]
    donor, image = drawn(boxes, [1] + [2] * 15, 100), drawn([], [], 0)
    first = [
        int(paste_objects(image, donor, np.random.default_rng(seed)).labels[0])
        for seed in range(200)
    ]
    assert 70 < first.count(1) < 130


def test_what_is_seen_in_a_rectangle_comes_with_it() -> None:
    empty = drawn([], [], 0)
    donor = drawn(
        [[20, 20, 60, 60], [30, 30, 40, 40], [50, 30, 70, 40], [59, 50, 90, 70]], [3] * 4, 9
    )
    alone = replace(donor, labels=np.array([0, 1, 2, 3]))
    for seed in range(20):
        found = paste_objects(empty, alone, np.random.default_rng(seed))
        first = int(np.flatnonzero(found.labels == 0)[0]) if 0 in found.labels else None
        if first is None or found.labels.tolist()[:1] != [0]:
            continue  # the large one was not pasted first
        assert found.labels[:3].tolist() == [0, 1, 2]
        moved = found.boxes_xyxy[:3] - np.tile(found.boxes_xyxy[0, :2] - 20, 2)
        assert moved.tolist() == [[20, 20, 60, 60], [30, 30, 40, 40], [50, 30, 60, 40]]
        return
    raise AssertionError("never pasted")


def test_what_does_not_fit_is_left_out() -> None:
    image, empty = drawn([[0, 0, 128, 96]], [0], 50), drawn([], [], 0)
    assert paste_objects(image, empty, np.random.default_rng(0)) is image
    tiny = drawn([[5, 5, 8, 30]], [1], 200)
    assert len(paste_objects(empty, tiny, np.random.default_rng(0)).labels) == 0
    large = drawn([[0, 0, 120, 90]], [1], 200)
    hides = paste_objects(image, large, np.random.default_rng(0))
    assert hides.labels.tolist() == [0] and (hides.pixels == image.pixels).all()
    assert len(
        paste_objects(empty, drawn([[0, 0, 128, 96]], [1], 9), np.random.default_rng(0)).labels
    )


def test_objects_keep_their_weights() -> None:
    image = drawn([[10, 10, 20, 20]], [0], 50)
    donor = replace(drawn([[0, 0, 12, 20]], [1], 200), weights=np.array([0.25], np.float32))
    weights = paste_objects(image, donor, np.random.default_rng(1)).weights
    assert weights is not None and weights.tolist() == [1.0, 0.25]


def test_training_images_have_more_objects(shapes: Path) -> None:
    """The same each time; without pasting the samples stay as they were."""
    records = load_split(shapes, "train").records
    config = replace(SMALL, augment=AugmentConfig(pasted=1.0))
    plain = Samples(records, HW, replace(config, augment=AugmentConfig()))
    pasting = Samples(records, HW, config)
    before = after = 0
    for index in range(len(records)):
        image, target = pasting.sample(0, index)
        again, same = pasting.sample(0, index)
        assert torch.equal(image, again) and torch.equal(target.boxes_xyxy, same.boxes_xyxy)
        own = plain.sample(0, index)[1]
        assert torch.equal(target.boxes_xyxy[: len(own.labels)], own.boxes_xyxy)
        before, after = before + len(own.labels), after + len(target.labels)
    assert after > 1.3 * before
