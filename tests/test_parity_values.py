"""The comparison of detections, by hand."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from deploy.parity import ALLOWED, Parity, compare, largest, match_detections, unexplained
from supernet.boxes import Detections
from supernet.heatdetr.operators.decode import Decode

SAME = Parity(
    images=2, matched=9, unmatched=0, max_box_px=0.0, max_score=0.0, raw_max_box_px=0.0,
    raw_max_score=0.0,
)  # fmt: skip


def test_the_tolerances_are_those_of_the_documentation() -> None:
    found = {name: (a.iou, a.score, a.raw_box_px, a.unmatched) for name, a in ALLOWED.items()}
    assert found == {
        "f32": (0.99, 0.001, 0.1, 0.0), "f16": (0.95, 0.05, 8.0, 0.05),
        "bf16": (0.8, math.inf, math.inf, 0.1), "int8": (0.5, math.inf, math.inf, 0.25),
    }  # fmt: skip


@pytest.mark.parametrize("precision", ALLOWED)
def test_a_tolerance_holds_at_its_value(precision: str) -> None:
    allowed = ALLOWED[precision]
    same = replace(SAME, precision=precision)
    assert same.passed and not replace(same, not_finite=1).passed
    for field, most in (
        ("max_score", allowed.score), ("raw_max_score", allowed.score),
        ("raw_max_box_px", allowed.raw_box_px),
    ):  # fmt: skip
        assert replace(same, **{field: most}).passed
        assert not replace(same, **{field: math.nan}).passed
        if most < math.inf:
            assert not replace(same, **{field: math.nextafter(most, 99)}).passed


def test_the_share_without_a_partner_is_of_all() -> None:
    """A twentieth of f16's detections: one of twenty, not one of nineteen."""
    half = replace(SAME, precision="f16")
    assert replace(half, matched=19, unmatched=1).passed
    assert not replace(half, matched=18, unmatched=1).passed
    assert not replace(SAME, matched=10_000, unmatched=1).passed


def test_the_worst_is_before_or_after_nms() -> None:
    one = replace(SAME, max_box_px=0.2, raw_max_box_px=0.1, max_score=0.3, raw_max_score=0.4)
    assert one.worst_box_px == 0.2 and one.worst_score == 0.4
    assert math.isnan(largest(1.0, math.nan)) and math.isnan(largest(math.nan, 1.0))


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    """Boxes xyxy, score and label, a row each."""
    values = torch.tensor([row[:5] for row in rows]).reshape(-1, 5)
    labels = torch.tensor([row[5] for row in rows], dtype=torch.int64)
    return Detections(values[:, :4], values[:, 4], labels)


def parts(of: Detections) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return of.boxes_xyxy, of.scores, of.labels


A = (10.0, 10.0, 50.0, 60.0, 0.9, 1)
B = (70.0, 10.0, 90.0, 60.0, 0.5, 0)


def test_partners_by_hand() -> None:
    ours = found(A, B)
    assert match_detections(ours, parts(ours)) == (2, 0, 0.0, 0.0)
    moved = found((10.125, 10.0, 50.0, 60.0, 0.875, 1), B)
    pairs, unpaired, box_px, score = match_detections(ours, parts(moved))
    assert (pairs, unpaired, box_px) == (2, 0, 0.125) and score == pytest.approx(0.025)
    renamed = found((*A[:5], 0), B)
    assert match_detections(ours, parts(renamed))[:2] == (1, 2), "missing on both sides"
    assert match_detections(ours, parts(found()))[:2] == (0, 2)
    assert match_detections(found(), parts(ours))[:2] == (0, 2)
    far = found((14.0, 10.0, 54.0, 60.0, 0.9, 1), B)
    assert match_detections(ours, parts(far))[:2] == (1, 2)
    assert match_detections(ours, parts(far), min_iou=0.8)[:3] == (2, 0, 4.0)


def test_a_partner_may_be_below_the_score() -> None:
    """0.3 on one side and 0.2999 on the other is a small difference, not a missing object."""
    high, low = (*A[:4], 0.3, 1), (*A[:4], 0.2999, 1)
    for first, second, pairs in ((high, low, 1), (low, high, 0)):
        matched, unpaired, box_px, score = match_detections(found(first), parts(found(second)))
        assert (matched, unpaired, box_px) == (pairs, 0, 0.0)
        assert score == pytest.approx(1e-4, rel=1e-2)
    assert match_detections(found(low), parts(found()))[:2] == (0, 0)


def test_the_partner_is_that_of_the_nearest_score() -> None:
    ours = found(A)
    theirs = found((*A[:4], 0.6, 1), (*A[:4], 0.88, 1))
    assert match_detections(ours, parts(theirs))[3] == pytest.approx(0.3)
    assert match_detections(ours, parts(found((*A[:4], 0.88, 1))))[3] == pytest.approx(0.02)


def test_a_box_that_is_clipped_to_nothing_is_its_own_copy() -> None:
    flat = (0.0, 10.0, 0.0, 60.0, 0.9, 1)
    assert match_detections(found(flat), parts(found(flat)))[:2] == (1, 0)
    near = (0.0625, 10.0, 0.0625, 60.0, 0.9, 1)
    assert match_detections(found(flat), parts(found(near)))[:3] == (1, 0, 0.0625)
    apart = (0.25, 10.0, 0.25, 60.0, 0.9, 1)
    assert match_detections(found(flat), parts(found(apart)))[:2] == (0, 2)


def test_with_nms_either_of_two_equal_boxes_is_explained_without_it_only_the_better_one() -> None:
    scores = torch.tensor([0.9, 0.8999, 0.01]).reshape(1, 1, 3)
    boxes = torch.tensor([[0.0, 0, 32, 32], [4, 0, 36, 32], [50, 50, 60, 60]])
    second = parts(found((4.0, 0.0, 36.0, 32.0, 0.8999, 0)))
    for nms, missing in ((True, 0), (False, 1)):
        decode = Decode((32,), 1, (64, 96), 0.0, nms=nms)
        assert unexplained(decode, scores, boxes, second, 0.99) == missing


class Fixed:
    """A network, and an artefact, whose outputs are always the same."""

    def __init__(self, scores: torch.Tensor, deltas: torch.Tensor) -> None:
        self.decode = Decode((32,), 2, (64, 64), 0.0)
        self.logits, self.deltas = scores.logit(), deltas
        self.architecture = SimpleNamespace(input_size=(64, 64))

    def deployed(self) -> "Fixed":
        return self

    def __call__(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.logits, self.deltas

    def run(self, feeds: Any) -> list[np.ndarray]:
        return [self.logits.sigmoid().flatten(3).numpy(), self.deltas.flatten(3).numpy()]

    def find(self, feeds: Any) -> list[np.ndarray]:
        return [value.numpy() for value in parts(self.decode(self.logits, self.deltas)[0])]


def test_differences_over_images_by_hand() -> None:
    """Counts add up over the images, differences are the largest."""
    scores = torch.full((1, 1, 2, 2, 2), 0.01)
    scores[0, 0, 1, 0, 0], scores[0, 0, 0, 1, 1] = 0.9, 0.5
    deltas = torch.zeros(1, 1, 4, 2, 2)
    ours = Fixed(scores, deltas)
    images = [np.zeros((64, 64, 3), np.uint8)] * 3
    same = compare(ours, ours.find, ours, images)  # type: ignore[arg-type]
    assert (same.images, same.matched, same.unmatched, same.not_finite) == (3, 6, 0, 0)
    assert same.passed and same.worst_score == 0.0 and same.worst_box_px == 0.0
    other_scores, other_deltas = scores.clone(), deltas.clone()
    other_scores[0, 0, 1, 0, 0] = 0.8
    other_deltas[0, 0, 0, 1, 1] = -0.25
    theirs = Fixed(other_scores, other_deltas)
    found = compare(ours, theirs.find, theirs, images)  # type: ignore[arg-type]
    assert found.raw_max_score == pytest.approx(0.1, rel=1e-4)
    assert found.raw_max_box_px == pytest.approx(8.0, rel=1e-4)
    assert not found.passed and found.matched == 3 and found.max_score == pytest.approx(0.1)
    assert found.unmatched == 0, "explained by the artefact's own boxes before NMS"
    lost = compare(ours, lambda feeds: [v[:1] for v in ours.find(feeds)], ours, images)  # type: ignore[arg-type]
    assert lost.matched == 3 and lost.unmatched == 3 and not lost.passed
    deltas = deltas.clone()
    deltas[0, 0, 0, 0, 1] = math.nan
    broken = compare(ours, ours.find, Fixed(scores, deltas), images)  # type: ignore[arg-type]
    assert broken.not_finite == 3 and not broken.passed
