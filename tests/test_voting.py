"""Box voting: its value, and one rule in torch, in numpy and in the deployed graphs."""

import math

import numpy as np
import pytest
import torch

from deploy.edge.postprocess import Postprocess, overlaps
from deploy.edge.runtimes import open_session
from deploy.edge.session import Array
from supernet.boxes import iou_matrix
from supernet.graph.writer import GraphWriter
from supernet.heatdetr.operators import voting
from supernet.heatdetr.operators.decode import Decode
from supernet.heatdetr.operators.voting import SPREAD, voted

A, K, H, W = 3, 4, 6, 8
RNG = np.random.default_rng(0)


def decode() -> Decode:
    return Decode((16, 32, 64), K, (16 * H, 16 * W), 0.0, stride=16, voting=True)


def maps(share: float) -> tuple[Array, Array]:
    """Return scores [A, K, L], a share of them above the threshold, and deltas [A, 4, L]."""
    scores = RNG.random((A, K, H * W)) * np.where(RNG.random((A, K, H * W)) < share, 1.0, 0.04)
    return scores.astype(np.float32), (RNG.standard_normal((A, 4, H * W)) * 0.3).astype(np.float32)


def test_a_box_moves_towards_its_neighbours() -> None:
    """Two boxes of IoU 0.6, and one of another place."""
    boxes = torch.tensor([[0.0, 0, 8, 8], [2, 0, 10, 8], [40, 40, 50, 50]])
    scores = torch.tensor([0.8, 0.4, 0.9])
    weight = 0.4**2 * math.exp(-(0.4**2) / SPREAD)
    shift = 2 * weight / (2 * 0.8**2 + weight)
    found = voted(boxes, boxes, scores, torch.tensor([0, 2]))
    assert found[0] == pytest.approx([shift, 0, 8 + shift, 8], abs=1e-4)
    assert found[1] == pytest.approx(boxes[2].tolist(), abs=1e-4)


def test_a_box_without_area_stays_where_it_is() -> None:
    boxes = torch.tensor([[0.0, 0, 0, 8], [2, 0, 10, 8]])
    found = voted(boxes, boxes, torch.tensor([0.8, 0.7]), torch.tensor([0, 1]))
    assert found[0] == pytest.approx(boxes[0].tolist(), abs=1e-4)


def test_overlaps_in_numpy_are_torchs() -> None:
    corners = RNG.random((9, 2, 2)) * 50
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
    assert overlaps(boxes[:4], boxes) == pytest.approx(
        iou_matrix(torch.from_numpy(boxes[:4]), torch.from_numpy(boxes)).numpy(), abs=1e-6
    )


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("share", "voters"), [(0.0, 256), (0.02, 256), (0.3, 256), (0.3, 20)])
def test_one_rule(runtime: str, share: float, voters: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing found; a few; more candidates than voters, so that kept ones come after them."""
    monkeypatch.setattr(voting, "VOTERS", voters)
    rule = decode()
    scores, deltas = maps(share)
    plain = Decode((16, 32, 64), K, (16 * H, 16 * W), 0.0, stride=16)
    boxes = rule.boxes_px(torch.from_numpy(deltas.reshape(1, A, 4, H, W)))[0]
    found = rule.select(torch.from_numpy(scores), boxes)
    before = plain.select(torch.from_numpy(scores), boxes)
    assert found.scores.equal(before.scores) and found.labels.equal(before.labels)
    assert bool(share) == (len(found.scores) > 0)
    assert share < 0.3 or float((found.boxes_xyxy - before.boxes_xyxy).abs().max()) > 0.5

    card = {**rule.rule(), "voters": voters}
    numpy = Postprocess(card, (16 * H, 16 * W))(scores, deltas.reshape(A, 4, H, W))
    assert numpy[0] == pytest.approx(found.boxes_xyxy.numpy(), abs=1e-2)
    assert numpy[2].tolist() == found.labels.tolist()

    for padded in (False, True):
        graph = GraphWriter()
        lead = (1,) if padded else ()
        inputs = {"scores": scores.reshape(*lead, A, K, H * W)}
        inputs["deltas"] = deltas.reshape(*lead, A, 4, H * W)
        values = [graph.input(name, array.shape, "float32") for name, array in inputs.items()]
        outputs = rule.emit(graph, *values, padded=padded)
        named = zip(
            ("boxes", "found", "labels"), outputs, ("float32", "float32", "int64"), strict=True
        )
        model = graph.model(list(named))
        with open_session(runtime, model.SerializeToString(), 1) as session:
            rows, kept, labels = session.run(inputs)
        if padded:
            rows, kept, labels = rows[0], kept[0], labels[0]
            rows, labels, kept = rows[kept > 0], labels[kept > 0], kept[kept > 0]
        assert kept == pytest.approx(found.scores.numpy(), abs=1e-6)
        assert labels.tolist() == found.labels.tolist()
        assert rows == pytest.approx(found.boxes_xyxy.numpy(), abs=1e-2)
