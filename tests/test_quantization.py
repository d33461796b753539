"""INT8: ranges, the plan, and that the artefact rounds as the simulation does."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, numpy_helper

from deploy.diverge import first_divergence
from deploy.edge.executed import executed_precision
from deploy.edge.runtimes import open_session
from deploy.form import Form
from deploy.quantize import by_sensitivity, quantize
from supernet.data.shapes import draw
from supernet.errors import PromiseError, UserError
from supernet.graph.style import GraphStyle
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.fake_quant import simulate_int8
from supernet.heatdetr.operators.repcnn import ConvRelu
from supernet.heatdetr.operators.window import KEY
from supernet.heatdetr.quantization import (
    BINS,
    Quantization,
    Range,
    best_range,
    calibrate,
    convolutions,
    place_of,
)
from supernet.letterbox import Image


@pytest.fixture(scope="module")
def pictures() -> list[Image]:
    rng = np.random.default_rng(3)
    return [draw(rng).pixels[:96, :128] for _ in range(4)]


@pytest.fixture(scope="module")
def batch(pictures: list[Image]) -> torch.Tensor:
    padded = [np.zeros((96, 128, 3), np.uint8) for _ in pictures]
    for canvas, picture in zip(padded, pictures, strict=True):
        canvas[: picture.shape[0], : picture.shape[1]] = picture
    return torch.from_numpy(np.stack(padded))


def int8_graph(network: Detector, plan: Quantization) -> bytes:
    style = GraphStyle(precision="int8", ranges=plan)
    return bytes(network.to_onnx(raw=True, style=style).SerializeToString())


def test_outliers_are_clipped_and_even_values_are_not() -> None:
    even = best_range(1.0, torch.ones(BINS, dtype=torch.float64))
    assert even.limit == 1.0 and even.error < 1e-4
    counts = torch.zeros(BINS, dtype=torch.float64)
    counts[: BINS // 4] = 1000.0
    counts[-1] = 1.0  # one far away
    assert best_range(8.0, counts).limit < 8.0
    assert best_range(0.0, torch.zeros(BINS, dtype=torch.float64)).limit > 0


def test_the_range_is_that_of_least_squared_error() -> None:
    """Against a loop over clips and bins: a step's square over 12 within the range, else the clip.

    The first histogram is one bin at the end, whose error is known by a formula.
    """
    last = torch.zeros(BINS, dtype=torch.float64)
    last[-1] = 3.0
    value = 8.0 * (BINS - 0.5) / BINS
    error = (8.0 / 127) ** 2 / 12 / value**2
    assert best_range(8.0, last) == Range(8.0, pytest.approx(error, rel=1e-12))
    rng = np.random.default_rng(0)
    for top, power in ((8.0, 1), (0.25, 6), (3.0, 30)):
        counts = rng.random(BINS) * np.linspace(1, 0, BINS) ** power
        counts[-1] += 1e-3
        values = (np.arange(BINS) + 0.5) * (top / BINS)
        tried = []
        for clip in range(8, 33):
            limit = top * clip / 32
            lost = sum(
                count * ((limit / 127) ** 2 / 12 if v <= limit else (v - limit) ** 2)
                for v, count in zip(values, counts, strict=True)
            )
            tried.append((lost / (counts @ values**2), limit))
        least, limit = min(tried)
        found = best_range(top, torch.from_numpy(counts))
        assert found == Range(pytest.approx(limit), pytest.approx(least, rel=1e-9))


def test_zeros_do_not_narrow_a_range(network: Detector, batch: torch.Tensor) -> None:
    """Those after a ReLU are exact at any range; each was charged the error of a small value."""
    folded = network.deployed()
    name, layer = list(convolutions(folded).items())[2]
    given: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda _, x, y: given.append(x[0]))
    with torch.inference_mode():
        folded(batch)
    hook.remove()
    x = given[0].abs()
    assert (x == 0).any()
    counts = torch.histc(x[x > 0], BINS, 0.0, float(x.max())).double()
    found = calibrate(network.deployed(), [batch]).ranges[name]
    assert found == best_range(float(x.max()), counts)


def test_the_artefact_rounds_as_the_simulation_does(network: Detector, batch: torch.Tensor) -> None:
    plan = calibrate(network.deployed(), [batch])
    logits, deltas = simulate_int8(network, [], plan)(batch[:1])
    model = network.to_onnx(
        raw=True, style=GraphStyle(precision="int8", ranges=plan)
    ).SerializeToString()
    scores, theirs = open_session("onnxruntime", model, 1).run({"image": batch[:1].numpy()})
    assert np.abs(scores - logits[0].detach().sigmoid().flatten(2).numpy()).max() < 0.02
    assert np.abs(theirs - deltas[0].detach().flatten(2).numpy()).max() < 0.1


@pytest.mark.parametrize(("runtime", "outputs"), [("openvino", False), ("onnxruntime", True)])
def test_int8_is_what_the_runtime_executes(
    network: Detector, batch: torch.Tensor, runtime: str, outputs: bool
) -> None:
    plan = calibrate(network.deployed(), [batch], outputs=outputs)
    model = network.to_onnx(
        raw=True, style=GraphStyle(precision="int8", ranges=plan)
    ).SerializeToString()
    feeds = {"image": batch[:1].numpy()}
    found = executed_precision(runtime, model, 1, "int8", feeds)
    assert found["int8"] >= 0.75 * len(plan.ranges)
    kept = plan.keeping({place_of(name) for name in plan.ranges})
    model = network.to_onnx(
        raw=True, style=GraphStyle(precision="int8", ranges=kept)
    ).SerializeToString()
    assert "int8" not in executed_precision(runtime, model, 1, "int8", feeds)


def test_as_few_parts_as_possible_stay_in_floating_point(
    network: Detector, batch: torch.Tensor
) -> None:
    plan = calibrate(network.deployed(), [batch])
    order = by_sensitivity(network.deployed(), plan, batch)
    assert sorted(order) == sorted({place_of(name) for name in plan.ranges})
    needed = set(order[:3])

    def lost(plan: Quantization) -> float:
        return 0.5 * len(needed - plan.kept)

    found, attempts = quantize(network, [batch], lost, max_drop=0.1)
    assert found.kept == needed
    assert attempts[0].kept == () and attempts[0].lost == 1.5
    found, attempts = quantize(network, [batch], lost, max_drop=2.0)
    assert not found.kept and len(attempts) == 1
    with pytest.raises(PromiseError, match="INT8 loses"):
        quantize(network, [batch], lambda plan: 5.0, max_drop=1.0)
    for count in range(len(order)):  # all counts between the powers of two, too
        needed = set(order[:count])
        assert quantize(network, [batch], lost, max_drop=0.1)[0].kept == needed


def test_the_first_part_that_differs_is_named(
    network: Detector, pictures: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    for runtime in ("onnxruntime", "openvino"):
        assert first_divergence(network, pictures[0], runtime, 1) is None
    monkeypatch.setattr(ConvRelu, "emit", lambda self, graph, x: graph.conv(x, self.conv))
    found = first_divergence(network, pictures[0], "onnxruntime", 1)
    assert found is not None and found.place == "s1_0" and found.error > 0.1


def test_nncf_is_an_extra(
    network: Detector, batch: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = Form(format="openvino", precision="int8", nncf=batch.numpy())
    graph = form.graph(network, None)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "nncf", None)
        with pytest.raises(UserError, match=r"pip install 'heatdetr\[nncf\]'"):
            form.write(graph, tmp_path)
    pytest.importorskip("nncf")
    model, _ = form.write(graph, tmp_path)
    feeds = {"image": batch[:1].numpy()}
    assert executed_precision("openvino", model, 1, "int8", feeds)["int8"] > 0


def test_a_plan_is_about_names_of_the_folded_network(network: Detector, tmp_path: Path) -> None:
    plan = calibrate(network.deployed(), [torch.zeros(1, 96, 128, 3, dtype=torch.uint8)])
    assert "stem" in {place_of(name) for name in plan.ranges}
    assert plan.limit("stem.conv1") is not None and plan.output_limit("stem.conv1") is None
    assert plan.keeping(["stem"]).limit("stem.conv1") is None


def test_the_range_of_queries_has_their_scale(network: Detector, batch: torch.Tensor) -> None:
    """Softmax's is folded into them; with the range of before they had a quarter of the levels."""
    folded = network.deployed()
    plan = calibrate(folded, [batch], outputs=True)
    model = network.to_onnx(raw=True, style=GraphStyle(precision="int8", ranges=plan))
    steps = {
        float(numpy_helper.to_array(each))
        for each in model.graph.initializer
        if not each.dims and each.data_type == TensorProto.FLOAT
    }
    names = [
        name for name, _ in convolutions(folded).items()
        if name.endswith(".qkv") and name.split("_")[0] in ("s1", "s2", "s3", "s4")
        and name.split(".")[0].rpartition("_")[2].isdecimal()
    ]  # fmt: skip
    assert names
    for name in names:
        limit = plan.output_limit(name)
        assert limit is not None
        for factor in (1.0, KEY**-0.5):  # of keys and values, and of queries
            assert np.float32(limit * factor / 127) in steps, (name, factor)
