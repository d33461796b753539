"""Task-aligned assignment, and networks that say each object once."""

import pytest
import torch

from deploy.edge.runtimes import open_session
from supernet.counting import count_macs, count_params
from supernet.data.ground_truth import GroundTruth
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.train.aligned import TOP_K, align, aligned_loss, training_loss

CENTRES = torch.tensor([[x + 16.0, 16.0] for x in range(0, 128, 32)])


def anchors() -> torch.Tensor:
    return torch.cat([CENTRES - 16, CENTRES + 16], 1)


def test_the_surest_hit_answers() -> None:
    target = GroundTruth(torch.tensor([[32.0, 0, 96, 32]]), torch.tensor([1]))
    scores = torch.full((4, 2), 0.1)
    scores[2, 1] = 0.4
    found = align(CENTRES, scores, anchors(), target, 1, 24.0)
    assert found.anchors_P.tolist() == [2] and found.boxes_P.tolist() == [0]
    assert found.targets_P.tolist() == pytest.approx([0.5])  # its overlap with the box
    many = align(CENTRES, scores, anchors(), target, TOP_K, 24.0)
    assert many.anchors_P.tolist() == [1, 2]
    assert many.targets_P.tolist() == pytest.approx([0.25, 0.5])  # half as sure by the square root


def test_small_boxes_between_cells_are_answered_and_none_twice() -> None:
    boxes = torch.tensor([[30.0, 14, 34, 18], [0, 0, 40, 32]])
    target = GroundTruth(boxes, torch.tensor([0, 0]))
    found = align(CENTRES, torch.full((4, 1), 0.1), anchors(), target, TOP_K, 24.0)
    assert len(set(found.anchors_P.tolist())) == len(found.anchors_P)
    assert 1 in found.boxes_P.tolist()
    nothing = GroundTruth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert len(align(CENTRES, torch.zeros(4, 1), anchors(), nothing, 1, 24.0).anchors_P) == 0


@pytest.fixture
def once(unit: Architecture) -> Architecture:
    return unit.with_(head="one-to-one", output_stride=16, anchor_sizes=(16, 32, 64), num_classes=2)


def test_both_heads_are_trained_and_one_is_deployed(once: Architecture) -> None:
    torch.manual_seed(0)
    network = Detector(once).train()
    images = torch.randint(0, 255, (2, *once.input_size, 3), dtype=torch.uint8)
    targets = [
        GroundTruth(torch.tensor([[10.0, 10, 60, 50]]), torch.tensor([1])),
        GroundTruth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
    ]
    outputs = network(images)
    assert len(outputs) == 4 and outputs[0].shape[-2:] == (8, 12)
    loss = training_loss(outputs, targets, network.decode, "aligned")
    loss.total.backward()
    for head in (network.units["head"], network.many):
        assert head is not None
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
    alone = aligned_loss(outputs[:2], targets, network.decode, top=1)
    assert loss.total > alone.total
    deployed = network.eval().deployed()
    assert sum(p.numel() for p in deployed.units.parameters()) == count_params(once)


def test_a_one_to_one_graph_has_no_nms(once: Architecture) -> None:
    from latency_tables.models import random_network

    network = random_network(once)
    model = network.to_onnx()
    kinds = {node.op_type for node in model.graph.node}
    assert "NonMaxSuppression" not in kinds and "TopK" in kinds
    image = torch.randint(0, 255, (1, *once.input_size, 3), dtype=torch.uint8)
    with torch.no_grad():
        exact = network.detect(image)[0]
    for runtime in ("onnxruntime", "openvino"):
        session = open_session(runtime, model.SerializeToString(), 1)
        boxes, scores, labels = session.run({"image": image.numpy()})
        assert boxes.shape == (100, 4) and labels.shape == (100,)
        assert torch.allclose(torch.from_numpy(scores), exact.scores, atol=1e-5)
        same = torch.from_numpy(labels) == exact.labels
        assert same.float().mean() > 0.9  # scores that are alike may change places


@pytest.mark.parametrize(("stride", "place"), [(16, "scm_up3"), (8, "scm_up2")])
def test_fewer_pixels_between_cells(unit: Architecture, stride: int, place: str) -> None:
    fine = unit.with_stride(stride)
    places = fine.entries()
    assert places[place].stride == places["head"].stride == places["tcm_t1"].stride == stride
    assert places["scm_global1"].stride == 32
    assert ("scm_lat1_fine" in places) == (stride == 8)
    assert count_macs(fine).total > count_macs(unit.with_stride(2 * stride)).total
    assert Architecture.from_json(fine.to_json()) == fine
    with pytest.raises(Exception, match="output stride 4: 8, 16 or 32 needed"):
        unit.with_(output_stride=4)


def test_a_raw_one_to_one_graph_is_decoded_outside(once: Architecture) -> None:
    from deploy.edge.postprocess import Postprocess
    from latency_tables.models import random_network

    network = random_network(once)
    image = torch.randint(0, 255, (1, *once.input_size, 3), dtype=torch.uint8).numpy()
    whole = open_session("onnxruntime", network.to_onnx().SerializeToString(), 1)
    raw = open_session("onnxruntime", network.to_onnx(raw=True).SerializeToString(), 1)
    rule = network.decode.rule()
    assert rule["nms_iou"] is None and rule["stride"] == 16
    found = Postprocess(rule, once.input_size)(*raw.run({"image": image}))
    boxes, scores, _ = whole.run({"image": image})
    assert found[0].shape == boxes.shape
    assert torch.allclose(torch.from_numpy(found[1]), torch.from_numpy(scores), atol=1e-5)


def test_its_latency_can_be_measured(once: Architecture) -> None:
    """Every probe of the entries that it has in place of NMS and cells of 32 pixels runs."""
    from latency_tables.models import PLAIN, write
    from latency_tables.terms import terms

    places = once.entries()
    assert places["decode"].op == "top_k"
    for place in ("decode", "head", "scm_up3"):
        for probe in terms(places[place]):
            model = write(probe, PLAIN)
            session = open_session("onnxruntime", model.onnx, 1)
            feeds = {name: torch.zeros(shape).numpy() for name, (shape, _) in model.inputs.items()}
            assert session.run(feeds)
