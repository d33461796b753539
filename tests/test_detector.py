import numpy as np
import pytest
import torch

from deploy.edge.runtimes import open_session
from latency_tables.models import randomise
from supernet.data.ground_truth import GroundTruth
from supernet.graph.style import FORMS_VERSION, GraphStyle
from supernet.heatdetr.architecture import Architecture, preset
from supernet.heatdetr.detector import Detector
from supernet.train.uniform import detection_loss

STAGE_SHAPES = {
    "stem": (128, 104, 168),
    "s1_global": (128, 104, 168),
    "down12": (128, 52, 84),
    "s2_global": (128, 52, 84),
    "sam2_global": (128, 104, 168),
    "s3_global": (224, 26, 42),
    "sam3_global": (224, 52, 84),
    "s4_global": (384, 13, 21),
    "sam4_global": (384, 26, 42),
    "scm_ffn1": (384, 52, 84),
    "scm_global2": (384, 26, 42),
    "tcm_t2_2": (384, 26, 42),
}
"""The table of spec section 2, medium at 832x1344."""


def shapes_of(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Run a network on the meta device and return the output shape of each place."""
    with torch.device("meta"):
        network = Detector(architecture)
    found: dict[str, tuple[int, ...]] = {}

    def call(place: str, *inputs: torch.Tensor) -> object:
        output = network.units[place](*inputs)
        last = output[-1] if isinstance(output, tuple) else output
        found[place] = tuple(last.shape[1:])
        return output

    height, width = architecture.input_size
    network.wire(call, torch.empty((1, height, width, 3), dtype=torch.uint8, device="meta"))
    return found


def test_shapes_equal_the_spec() -> None:
    found = shapes_of(preset("medium", input_size=(832, 1344)))
    assert {place: found[place] for place in STAGE_SHAPES} == STAGE_SHAPES
    assert found["down23"] == (224, 26, 42)
    assert found["head"] == (5, 4, 26, 42)


def test_sizes_that_are_no_multiple_of_64() -> None:
    found = shapes_of(preset("nano", input_size=(160, 224)))
    assert found["stem"][1:] == (20, 28)
    assert found["s3_global"][1:] == (5, 7)
    assert found["s4_global"][1:] == (3, 4)
    assert found["sam4_global"][1:] == (5, 7)


def test_every_entry_is_wired_once(unit: Architecture) -> None:
    found = shapes_of(unit)
    assert set(found) == set(unit.entries()) - {"decode"}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("size", [(128, 192), (160, 224)])
def test_runtime_output_equals_torch(
    unit: Architecture, runtime: str, size: tuple[int, int]
) -> None:
    network = Detector(unit.with_(input_size=size)).eval()
    randomise(network)
    image = torch.randint(0, 256, (1, *size, 3), dtype=torch.uint8)
    with torch.no_grad():
        logits, deltas = network(image)
    model = network.to_onnx(raw=True)
    found = open_session(runtime, model.SerializeToString(), 1).run({"image": image.numpy()})
    for value, reference in zip(found, (logits.sigmoid(), deltas), strict=True):
        expected = reference.numpy().reshape(value.shape)
        assert np.abs(value - expected).max() / np.abs(expected).max() <= 1e-4


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_decoding_in_the_graph_equals_torch(unit: Architecture, runtime: str) -> None:
    network = Detector(unit).eval()
    randomise(network)
    image = torch.randint(0, 256, (1, *unit.input_size, 3), dtype=torch.uint8)
    with torch.no_grad():
        reference = network.detect(image)[0]
    model = network.to_onnx().SerializeToString()
    boxes, scores, labels = open_session(runtime, model, 1).run({"image": image.numpy()})
    assert 0 < len(reference.scores) <= 100
    assert boxes.shape == (len(reference.scores), 4)
    assert np.abs(scores - reference.scores.numpy()).max() <= 1e-5
    assert np.abs(boxes - reference.boxes_xyxy.numpy()).max() <= 1e-2
    assert (labels == reference.labels.numpy()).all()


def test_exported_graph_has_no_norm_and_no_control_flow(unit: Architecture) -> None:
    kinds = {node.op_type for node in Detector(unit).to_onnx().graph.node}
    refused = {"BatchNormalization", "LayerNormalization", "If", "Loop", "Scan"}
    assert not kinds & refused
    assert {node.domain for node in Detector(unit).to_onnx().graph.node} == {""}


def test_whole_network_folds(unit: Architecture) -> None:
    network = Detector(unit).eval()
    randomise(network)
    image = torch.randint(0, 256, (1, *unit.input_size, 3), dtype=torch.uint8)
    with torch.no_grad():
        for before, after in zip(network(image), network.deployed()(image), strict=True):
            assert float((before - after).abs().max() / before.abs().max()) <= 1e-5


@pytest.mark.parametrize("block", ["cw", "oa"])
def test_gradient_reaches_every_parameter(unit: Architecture, block: str) -> None:
    network = Detector(unit.with_(global_block=block, token_sparsity=0.18)).train()
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1 and name.endswith("weight"):
            torch.nn.init.ones_(parameter)  # zero-started branches block the gradient behind them
    image = torch.randint(0, 256, (2, *unit.input_size, 3), dtype=torch.uint8)
    target = GroundTruth(torch.tensor([[20.0, 20.0, 90.0, 100.0]]), torch.tensor([1]))
    logits, deltas = network(image)
    detection_loss((logits, deltas), [target, target], network.decode).total.backward()
    without = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert without == []


def test_drop_path_rises_over_the_window_blocks(unit: Architecture) -> None:
    network = Detector(unit)
    network.set_drop_path(0.2)
    rates = [
        float(unit_.drop_path.rate)  # type: ignore[union-attr, arg-type]
        for place, unit_ in network.units.items()
        if place in ("s1_1", "s2_0", "s3_1", "s3_2", "s4_0")
    ]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.2)


def test_a_changed_deployed_form_raises_its_version(unit: Architecture) -> None:
    """Latencies of other nodes are stale: whoever changes them raises FORMS_VERSION."""
    import hashlib

    oa = unit.with_(global_block="oa")
    kinds = [
        node.op_type
        for a in (unit, oa)
        for last in (False, True)
        for node in Detector(a).to_onnx(style=GraphStyle(channels_last=last)).graph.node
    ]
    found = hashlib.sha256(" ".join(kinds).encode()).hexdigest()[:12]
    assert (FORMS_VERSION, found) == (3, "c67f6a413d40")
