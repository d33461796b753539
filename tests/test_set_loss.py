"""Losses and decoding of sets: matching, terms, graphs."""

import numpy as np
import pytest
import torch
from torch import Tensor

from deploy.edge.runtimes import open_session
from supernet.data.ground_truth import GroundTruth
from supernet.detr.set_decode import SetDecode
from supernet.graph.writer import GraphWriter
from supernet.train.set_loss import DETR, SAM_DETR, SetWeights, match_sets, set_loss

SIZE = (100, 200)


def perfect(weights: SetWeights, layers: int = 2) -> tuple[Tensor, Tensor, list[GroundTruth]]:
    """Return what a network that knows everything says of two images, one of them empty."""
    targets = [
        GroundTruth(torch.tensor([[20.0, 10, 60, 50], [100, 20, 190, 90]]), torch.tensor([2, 0])),
        GroundTruth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
    ]
    K = 3 if weights.focal else 4
    logits = torch.full((layers, 2, 5, K), -20.0)
    boxes = torch.rand(layers, 2, 5, 4) * 0.2 + 0.4
    if not weights.focal:
        logits[..., -1] = 20
    for query, label in ((3, 2), (1, 0)):
        logits[:, 0, query] = -20
        logits[:, 0, query, label] = 20
    boxes[:, 0, 3] = torch.tensor([0.2, 0.3, 0.2, 0.4])
    boxes[:, 0, 1] = torch.tensor([0.725, 0.55, 0.45, 0.7])
    return logits, boxes, targets


@pytest.mark.parametrize("weights", [DETR, SAM_DETR])
def test_objects_find_their_queries(weights: SetWeights) -> None:
    logits, boxes, targets = perfect(weights)
    unit = torch.tensor([200.0, 100, 200, 100])
    corners = targets[0].boxes_xyxy / unit
    wanted = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1)
    queries, objects = match_sets(logits[0, 0], boxes[0, 0], wanted, targets[0].labels, weights)
    assert dict(zip(objects.tolist(), queries.tolist(), strict=True)) == {0: 3, 1: 1}


@pytest.mark.parametrize("weights", [DETR, SAM_DETR])
def test_perfect_answers_cost_nothing(weights: SetWeights) -> None:
    logits, boxes, targets = perfect(weights)
    for value in set_loss(logits, boxes, targets, SIZE, weights).values():
        assert float(value) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("weights", [DETR, SAM_DETR])
def test_every_layer_counts_and_is_weighted(weights: SetWeights) -> None:
    logits, boxes, targets = perfect(weights)
    boxes[1, 0, 3, 0] += 0.1
    terms = set_loss(logits, boxes, targets, SIZE, weights)
    assert float(terms["l1"]) == pytest.approx(5 * 0.1 / 2, abs=1e-5)
    assert float(terms["giou"]) == pytest.approx(2 * (1 - 0.1 / 0.3) / 2, abs=1e-4)
    logits[0, 0, 3] = 0
    worse = set_loss(logits, boxes, targets, SIZE, weights)["classes"]
    share = 1 / (2 * 1 + 0.1 * 8)
    expected = np.log(4) * share if not weights.focal else 2 * np.log(2) * 0.25 * (0.25 + 1.5) / 2
    assert float(worse) == pytest.approx(expected, rel=1e-4)


def test_more_objects_than_queries() -> None:
    logits, boxes, _ = perfect(DETR)
    many = GroundTruth(torch.rand(9, 4).sort(1)[0] * 100, torch.zeros(9, dtype=torch.int64))
    terms = set_loss(logits, boxes, [many, many], SIZE, DETR)
    assert all(torch.isfinite(value) for value in terms.values())


def test_nan_is_told_by_the_loss() -> None:
    logits, boxes, targets = perfect(DETR)
    boxes[:, 0, 0] = torch.nan
    logits[:, 0, 0] = torch.nan
    terms = set_loss(logits, boxes, targets, SIZE, DETR)
    assert not torch.isfinite(terms["classes"])


@pytest.mark.parametrize("weights", [DETR, SAM_DETR])
def test_sets_are_decoded(weights: SetWeights) -> None:
    logits, boxes, targets = perfect(weights)
    decode = SetDecode(3, SIZE, focal=weights.focal)
    found = decode(logits[-1], boxes[-1])[0]
    by_box = found.boxes_xyxy[:2].sort(0)[0]
    assert by_box.numpy() == pytest.approx(targets[0].boxes_xyxy.numpy(), abs=1e-3)
    assert sorted(found.labels[:2].tolist()) == [0, 2]
    assert found.scores[:2].min() > 0.99 and found.scores[2:].max() < 0.01


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("focal", "Q"), [(False, 7), (True, 7), (False, 120), (True, 60)])
def test_graphs_decode_as_torch_does(runtime: str, focal: bool, Q: int) -> None:
    decode = SetDecode(3, SIZE, focal=focal)
    logits, boxes = torch.randn(1, Q, 3 if focal else 4), torch.rand(1, Q, 4)
    graph = GraphWriter()
    given = decode.emit_scores(graph, graph.input("logits", logits.shape))
    outputs = decode.emit(graph, given, graph.input("boxes", boxes.shape))
    types = ("float32", "float32", "int64")
    model = graph.model(list(zip(("boxes_out", "scores", "labels"), outputs, types, strict=True)))
    session = open_session(runtime, model.SerializeToString(), 1)
    found = session.run({"logits": logits.numpy(), "boxes": boxes.numpy()})
    expected = decode(logits, boxes)[0]
    assert found[0] == pytest.approx(expected.boxes_xyxy.numpy(), abs=1e-3)
    assert found[1] == pytest.approx(expected.scores.numpy(), abs=1e-5)
    assert found[2].tolist() == expected.labels.tolist()
    assert len(found[1]) == min(100, Q * (3 if focal else 1))
