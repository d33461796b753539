"""Heads that predict a distribution of each side of a box: their maps, graphs and loss."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.edge.runtimes import open_session
from latency_tables.models import random_network
from supernet.data.ground_truth import GroundTruth
from supernet.errors import UserError
from supernet.graph.style import GraphStyle
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.operators.distributions import BINS, DistributionHead, distances
from supernet.train.aligned import training_loss
from supernet.train.box_loss import distribution_loss, side_distances
from supernet.train.head_maps import by_head


@pytest.fixture
def distributed(unit: Architecture) -> Architecture:
    return unit.with_(boxes="distributions", input_size=(96, 128))


def images_of(architecture: Architecture) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randint(0, 256, (2, *architecture.input_size, 3), dtype=torch.uint8)


def test_boxes_begin_as_the_anchors(distributed: Architecture) -> None:
    network = Detector(distributed).eval()
    with torch.no_grad():
        _, deltas = network(images_of(distributed))
    sides = distances()
    shares = np.exp(-8.0 * abs(sides - 0.5))
    mean = float((shares * sides).sum() / shares.sum())
    assert mean == pytest.approx(0.5, abs=0.02)
    assert float(deltas[:, :, :2].abs().max()) < 0.02
    assert float((deltas[:, :, 2:] - math.log(2 * mean)).abs().max()) < 0.05


def test_deltas_are_of_the_mean_distances() -> None:
    head = DistributionHead(32, 1, 1).eval()
    shares = torch.zeros(4, BINS)
    wanted = torch.tensor([0.25, 0.5, 1.0, 0.75])  # left, top, right, bottom
    for side, value in enumerate(wanted):
        place = float((value - distances()[0]) / (distances()[1] - distances()[0]))
        shares[side, int(place)] = 1 - place % 1
        shares[side, int(place) + 1] += place % 1
    torch.nn.init.zeros_(head.box.weight)
    assert head.box.bias is not None
    head.box.bias.data = shares.clamp_min(1e-12).log().flatten()
    _, deltas = head(torch.zeros(1, 32, 1, 1), torch.zeros(1, 32, 1, 1))
    expected = [0.375, 0.125, math.log(1.25), math.log(1.25)]
    assert deltas.flatten().tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["f32", "f16"])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_graph_computes_what_torch_does(
    distributed: Architecture, runtime: str, precision: str, batch: int
) -> None:
    """All of it behind the convolution is written in full precision, also of an f16 graph."""
    network = random_network(distributed)
    torch.nn.init.normal_(network.units["head"].box.weight, std=3.0)  # type: ignore[union-attr, arg-type]
    style = GraphStyle.of(runtime, precision)
    model = network.to_onnx(raw=True, style=style, batch=batch)
    image = images_of(distributed)[:batch]
    found = open_session(runtime, model.SerializeToString(), 1).run({"image": image.numpy()})
    with torch.no_grad():
        logits, deltas = network.deployed()(image)
    assert float(deltas.std((1, 3, 4)).min()) > 0.05, "maps that differ"
    limit = 1e-3 if precision == "f32" else 0.05
    scores = logits.sigmoid().flatten(3).reshape(found[0].shape)
    np.testing.assert_allclose(found[0], scores, atol=limit)
    np.testing.assert_allclose(found[1], deltas.flatten(3).reshape(found[1].shape), atol=limit)


def test_distances_are_in_sides_of_the_anchor() -> None:
    anchor, box = torch.tensor([[10.0, 10, 30, 30]]), torch.tensor([[15.0, 0, 50, 25]])
    assert side_distances(anchor, box).tolist() == [[0.25, 1.0, 1.5, 0.25]]


def test_the_loss_by_hand() -> None:
    """Equation 6: both neighbours of a distance, weighted by how near they are."""
    bins = torch.from_numpy(distances())
    place = 3.4
    value = float(bins[3] + 0.4 * (bins[4] - bins[3]))
    logits = torch.randn(1, 4, BINS)
    log = logits.log_softmax(-1)
    assert place  # a distance between bins 3 and 4
    expected = -(0.6 * log[0, :, 3] + 0.4 * log[0, :, 4]).mean()
    found = distribution_loss(logits, torch.full((1, 4), value))
    assert float(found) == pytest.approx(float(expected), rel=1e-4)
    beyond = distribution_loss(logits, torch.full((1, 4), 99.0))
    assert float(beyond) == pytest.approx(float(-log[0, :, -1].mean()), rel=1e-5)


def test_autocast_keeps_the_deltas_in_full_precision(distributed: Architecture) -> None:
    network = Detector(distributed).train()
    with torch.autocast("cpu", torch.bfloat16):
        maps = network(images_of(distributed))
    assert [part.dtype for part in maps] == [torch.float32] * 3


@pytest.mark.parametrize("head", ["nms", "one-to-one"])
@pytest.mark.parametrize("assign", ["uniform", "aligned"])
def test_the_distributions_learn(distributed: Architecture, head: str, assign: str) -> None:
    network = Detector(distributed.with_(head=head)).train()
    target = GroundTruth(torch.tensor([[20.0, 20, 60, 70]]), torch.tensor([1]))
    outputs = network(images_of(distributed))
    heads = by_head(outputs)
    assert [len(maps) for maps in heads] == [3] * (2 if head == "one-to-one" else 1)
    loss = training_loss(outputs, [target] * 2, network.decode, assign)  # type: ignore[arg-type]
    assert list(loss.terms) == ["classes", "boxes", "sides"]
    assert float(loss.terms["sides"].detach()) > 0
    loss.terms["sides"].backward()  # type: ignore[no-untyped-call]
    for module in (network.units["head"], network.many):
        if module is not None:
            assert module.box.weight.grad.abs().sum() > 0  # type: ignore[union-attr, operator]
            assert module.cls.weight.grad is None  # type: ignore[union-attr]
    assert len(network.eval()(images_of(distributed))) == 2


def test_images_without_objects_have_no_loss_of_sides(distributed: Architecture) -> None:
    network = Detector(distributed).train()
    empty = GroundTruth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    outputs = network(images_of(distributed))
    loss = training_loss(outputs, [empty] * 2, network.decode, "uniform")
    assert float(loss.terms["sides"].detach()) == 0 and torch.isfinite(loss.total)


def test_older_architectures_have_deltas(distributed: Architecture, tmp_path: Path) -> None:
    """What they recorded, in checkpoints and studies too, is compared as a text or a digest."""
    older = distributed.with_(boxes="deltas")
    assert "boxes" not in older.to_dict() and distributed.to_dict()["boxes"] == "distributions"
    older.save(tmp_path / "architecture.json")
    assert Architecture.load(tmp_path / "architecture.json") == older
    distributed.save(tmp_path / "architecture.json")
    assert Architecture.load(tmp_path / "architecture.json") == distributed
    with pytest.raises(UserError, match=r"boxes 'corners': one of deltas, distributions needed"):
        distributed.with_(boxes="corners")
