import numpy as np
import pytest
import torch

from supernet.boxes import cxcywh_to_xyxy, giou_pairs, iou_matrix, xyxy_to_cxcywh
from supernet.data.ground_truth import GroundTruth
from supernet.errors import UserError
from supernet.heatdetr.operators.decode import Decode, make_anchors
from supernet.heatdetr.operators.suppress import nms
from supernet.train.matching import IGNORED, NEGATIVE, match
from supernet.train.uniform import detection_loss, focal_loss

FAR = torch.tensor([[1000.0 + 100 * i, 1000.0, 1050.0 + 100 * i, 1050.0] for i in range(4)])


def boxes(*rows: tuple[float, float, float, float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def test_box_conversions_are_inverse() -> None:
    rows = boxes((1, 2, 30, 40), (0, 0, 5, 5))
    assert torch.allclose(cxcywh_to_xyxy(xyxy_to_cxcywh(rows)), rows)


def test_overlaps_by_hand() -> None:
    a, b = boxes((0, 0, 10, 10)), boxes((5, 0, 15, 10))
    assert float(iou_matrix(a, b)) == pytest.approx(1 / 3)
    assert float(giou_pairs(a, b)) == pytest.approx(1 / 3)
    apart = boxes((20, 0, 30, 10))
    assert float(giou_pairs(a, apart)) == pytest.approx(-1 / 3)


def test_candidates_are_the_nearest_of_both() -> None:
    anchors = torch.cat([boxes((0, 0, 10, 10), (2, 0, 12, 10), (4, 0, 14, 10)), FAR])
    predicted = torch.cat([FAR, boxes((0, 0, 10, 10), (1, 0, 11, 10), (2, 0, 12, 10))])
    found = match(anchors, predicted, boxes((0, 0, 10, 10)), torch.tensor([2]), k=2)
    # Anchors 0 and 1 by their own distance; predictions 4 and 5, whose anchors are far away.
    assert found.anchors_P.tolist() == [0, 1]
    assert found.targets_M.tolist()[:2] == [2, 2]
    assert found.targets_M[4] == IGNORED and found.targets_M[5] == IGNORED
    assert found.targets_M[2] == NEGATIVE


def test_near_is_by_the_sum_of_coordinates() -> None:
    """L1, as in YOLOF: 10 in one coordinate is nearer than 6 in two."""
    anchors = torch.cat([boxes((10, 0, 50, 40), (6, 6, 46, 46)), FAR])
    found = match(anchors, FAR.repeat(2, 1)[:6], boxes((0, 0, 40, 40)), torch.tensor([0]), k=1)
    assert set(found.anchors_P.tolist()) == {0} and found.targets_M[1] == NEGATIVE


def test_an_anchor_claimed_twice_goes_to_the_nearer_box() -> None:
    anchors = torch.cat([boxes((0, 0, 10, 10)), FAR])
    claims = boxes((3, 0, 13, 10), (1, 0, 11, 10))
    found = match(anchors, anchors, claims, torch.tensor([0, 1]), k=1)
    assert found.targets_M[0] == 1
    assert found.anchors_P.tolist() == [0, 0, 0, 0], "both boxes keep their box loss, twice"


@pytest.mark.parametrize(("side", "positive"), [(16.0, True), (14.0, False)])
def test_anchor_iou_below_015_is_ignored(side: float, positive: bool) -> None:
    """A 16 px box in a 40 px anchor has IoU 0.16, a 14 px box 0.1225."""
    anchors = torch.cat([boxes((0, 0, 40, 40)), FAR])
    found = match(anchors, anchors, boxes((0, 0, side, side)), torch.tensor([0]), k=1)
    assert found.targets_M[0] == (0 if positive else IGNORED)
    assert (len(found.anchors_P) > 0) is positive


@pytest.mark.parametrize(("width", "target"), [(7.1, IGNORED), (7.0, NEGATIVE), (6.9, NEGATIVE)])
def test_good_predictions_are_no_negatives(width: float, target: int) -> None:
    anchors = torch.cat([boxes((0, 0, 10, 10)), FAR, boxes((500, 500, 600, 600))])
    predicted = anchors.clone()
    predicted[-1] = torch.tensor([0.0, 0.0, width, 10.0])
    found = match(anchors, predicted, boxes((0, 0, 10, 10)), torch.tensor([0]), k=1)
    assert found.targets_M[-1] == target < 0


def test_image_without_boxes_is_all_negative() -> None:
    found = match(FAR, FAR, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert (found.targets_M == NEGATIVE).all() and len(found.anchors_P) == 0


def test_too_few_anchors_are_refused() -> None:
    with pytest.raises(UserError, match="larger input"):
        match(FAR[:3], FAR[:3], FAR[:1], torch.tensor([0]))


def test_loss_of_an_empty_batch_is_finite_and_has_gradient() -> None:
    decode = Decode((32, 64), 3, (64, 96), 0.0)
    logits = torch.randn(1, 2, 3, 2, 3, requires_grad=True)
    deltas = torch.randn(1, 2, 4, 2, 3, requires_grad=True)
    empty = GroundTruth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    loss = detection_loss((logits, deltas), [empty], decode)
    loss.total.backward()
    assert float(loss.terms["boxes"].detach()) == 0.0
    assert logits.grad is not None and float(logits.grad.abs().sum()) > 0


def test_a_batch_has_a_ground_truth_for_each_image() -> None:
    decode = Decode((32, 64), 3, (64, 96), 0.0)
    empty = GroundTruth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="zip"):
        detection_loss((torch.zeros(2, 2, 3, 2, 3), torch.zeros(2, 2, 4, 2, 3)), [empty], decode)


def test_perfect_boxes_cost_nothing() -> None:
    decode = Decode((32,), 1, (64, 64), 0.0)
    anchors = decode.anchors_xyxy(2, 2)
    truth = GroundTruth(anchors[3:], torch.tensor([0]))

    def cost(deltas_B4hw: torch.Tensor) -> float:
        loss = detection_loss((torch.zeros(1, 1, 1, 2, 2), deltas_B4hw[:, None]), [truth], decode)
        assert loss.positives >= 1
        return float(loss.terms["boxes"])

    perfect = torch.zeros(1, 4, 2, 2)
    assert cost(perfect) == pytest.approx(0.0, abs=1e-6)
    for channel in range(4):
        wrong = perfect.clone()
        wrong[:, channel] = 0.5
        assert cost(wrong) > 0.05, channel


def test_focal_loss_by_hand() -> None:
    value = focal_loss(torch.tensor([0.0]), torch.tensor([1.0]))
    assert float(value) == pytest.approx(0.25 * 0.25 * 0.693147, rel=1e-5)


def test_anchors_are_anchor_major_at_cell_corners() -> None:
    rows = make_anchors(2, 3, (32, 64), 0.0, 32)
    assert rows.shape == (12, 3)
    assert rows[1].tolist() == [32.0, 0.0, 32.0]
    assert rows[6].tolist() == [0.0, 0.0, 64.0]
    assert make_anchors(1, 1, (32,), 0.5, 32)[0].tolist() == [16.0, 16.0, 32.0]


def test_decode_bounds_shift_and_growth() -> None:
    decode = Decode((32,), 1, (64, 64), 0.0)
    deltas = torch.zeros(1, 1, 4, 1, 1)
    deltas[0, 0, 0] = 100.0
    deltas[0, 0, 2] = 100.0
    box = xyxy_to_cxcywh(decode.boxes(deltas))[0, 0]
    assert box.tolist() == pytest.approx([32.0, 0.0, 32 * 62.5, 32.0], rel=1e-5)


def test_nms_is_class_wise_and_greedy() -> None:
    rows = boxes((0, 0, 10, 10), (1, 0, 11, 10), (100, 0, 110, 10))
    assert nms(rows, 0.6, 100).tolist() == [0, 2]
    assert nms(rows, 0.6, 1).tolist() == [0]
    decode = Decode((32,), 2, (32, 32), 0.0)
    logits = torch.full((1, 1, 2, 1, 1), 2.0)
    found = decode(logits, torch.zeros(1, 1, 4, 1, 1))[0]
    assert sorted(found.labels.tolist()) == [0, 1], "the same box of two classes stays twice"


def test_focal_loss_is_the_papers() -> None:
    """Against Lin et al.'s equation 5 in float64, on both kinds of targets."""
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(0, 2, (40, 3)), rng.integers(0, 2, (40, 3))
    p = 1 / (1 + np.exp(-logits))
    p_t, alpha_t = np.where(targets == 1, p, 1 - p), np.where(targets == 1, 0.25, 0.75)
    expected = -(alpha_t * (1 - p_t) ** 2 * np.log(p_t)).sum()
    found = focal_loss(torch.from_numpy(logits), torch.from_numpy(targets).double())
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_the_detection_loss_is_the_specs() -> None:
    """Section 6 on a batch of two images: both terms, one divisor, background is no class."""
    torch.manual_seed(0)
    decode = Decode((32, 64), 3, (96, 128), 0.0)
    logits, deltas = torch.randn(2, 2, 3, 3, 4), 0.3 * torch.randn(2, 2, 4, 3, 4)
    truth = [
        GroundTruth(boxes((20, 20, 60, 70), (70, 10, 120, 60)), torch.tensor([2, 0])),
        GroundTruth(boxes((5, 30, 40, 80)), torch.tensor([1])),
    ]
    anchors, predicted = decode.anchors_xyxy(3, 4), decode.boxes(deltas)
    classes = overlaps = 0.0
    pairs = 0
    for image, target in enumerate(truth):
        found = match(anchors, predicted[image], target.boxes_xyxy, target.labels)
        scores = logits[image].flatten(2).transpose(1, 2).reshape(-1, 3)
        wanted = torch.zeros_like(scores)
        for anchor in set(found.anchors_P.tolist()):
            wanted[anchor, found.targets_M[anchor]] = 1
        used = [m for m in range(len(anchors)) if int(found.targets_M[m]) != IGNORED]
        classes += float(focal_loss(scores[used], wanted[used]))
        for anchor, box in zip(found.anchors_P, found.boxes_P, strict=True):
            a, b = predicted[image, anchor], target.boxes_xyxy[box]
            common = (torch.minimum(a, b)[2:] - torch.maximum(a, b)[:2]).clamp_min(0).prod()
            union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common
            hull = (torch.maximum(a, b)[2:] - torch.minimum(a, b)[:2]).prod()
            overlaps += float(1 - common / union + (hull - union) / hull)
            pairs += 1
    assert pairs > 3
    loss = detection_loss((logits, deltas), truth, decode)
    assert loss.positives == pairs
    assert float(loss.terms["classes"]) == pytest.approx(classes / pairs, rel=1e-5)
    assert float(loss.terms["boxes"]) == pytest.approx(overlaps / pairs, rel=1e-5)
    assert float(loss.total) == pytest.approx((classes + overlaps) / pairs, rel=1e-5)
