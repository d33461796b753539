"""TensorRT without a GPU: what is refused, and engines built ahead of time."""

from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.build_engine import Plan, plan_engine
from deploy.capability import CAPABILITIES, check_capability
from deploy.edge.detect import Bundle
from deploy.edge.engine import build_engine, check_sidecar, gpu_here, read_engine
from deploy.export import export_bundle
from deploy.form import Form
from supernet.counting import count_params
from supernet.data.shapes import draw
from supernet.errors import BundleError, DeviceError, HeatError, UserError
from supernet.graph.style import GraphStyle, Precision
from supernet.heatdetr.architecture import preset
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.quantization import calibrate
from supernet.letterbox import Image, letterbox


@pytest.mark.parametrize(
    ("capability", "precision", "package", "version", "said"),
    [
        ("7.0", "f16", "tensorrt", "11.0.0", "tensorrt<10.5'"),
        ("7.0", "bf16", "tensorrt", "10.3.0", "no bf16"),
        ("6.1", "f32", "tensorrt", "10.4.0", "tensorrt<9.4'"),
        ("6.1", "f16", "tensorrt", "8.6.1", "no f16"),
        ("8.7", "f16", "tensorrt", "11.1.0", "tensorrt<10.8'"),
        ("7.5", "f32", "tensorrt_rtx", "1.7.1", "--precision f16"),
        ("7.0", "f16", "tensorrt_rtx", "1.7.1", "builds nothing"),
    ],
)
def test_what_cannot_run_is_refused_by_name(
    capability: str, precision: str, package: str, version: str, said: str
) -> None:
    with pytest.raises(DeviceError, match=said):
        check_capability(capability, precision, package, version)


def test_what_can_run_is_not_refused() -> None:
    check_capability("7.0", "f16", "tensorrt", "10.4.0")
    check_capability("6.1", "f32", "tensorrt", "8.6.1")
    check_capability("7.5", "f16", "tensorrt_rtx", "1.7.1")
    check_capability("8.9", "bf16", "tensorrt_rtx", "1.7.1")
    check_capability("9.0", "bf16", "tensorrt", "11.2.0")
    with pytest.raises(UserError, match=r"--gpu 5\.0"):
        check_capability("5.0", "f32", "tensorrt", "11.0.0")
    assert all(known.precisions for known in CAPABILITIES.values())


def test_an_engine_of_another_machine_is_refused_by_name() -> None:
    facts = {
        "package": "tensorrt", "version": "10.4.0", "compute_capability": "7.0", "gpu": "Tesla V100"
    }  # fmt: skip
    check_sidecar(facts, "tensorrt", "10.4.0", ("Tesla V100", "7.0"))
    with pytest.raises(DeviceError, match=r"Tesla V100.*here is NVIDIA L4 \(8\.9\)"):
        check_sidecar(facts, "tensorrt", "10.4.0", ("NVIDIA L4", "8.9"))
    with pytest.raises(DeviceError, match=r"here is no NVIDIA GPU"):
        check_sidecar(facts, "tensorrt", "10.4.0", None)
    with pytest.raises(UserError, match=r"tensorrt 10\.3\.0, here is tensorrt 10\.4\.0"):
        check_sidecar(facts | {"version": "10.3.0"}, "tensorrt", "10.4.0", ("Tesla V100", "7.0"))
    ahead = facts | {"package": "tensorrt_rtx", "compute_capability": "8.9", "gpu": None}
    check_sidecar(ahead, "tensorrt_rtx", "10.4.0", ("NVIDIA L4", "8.9"))


@pytest.fixture
def images() -> list[Image]:
    rng = np.random.default_rng(3)
    return [draw(rng)[0] for _ in range(3)]


@pytest.mark.parametrize("capability", ["8.6", "8.9", "12.0", "7.5"])
def test_true_engines_are_built_for_a_gpu_that_is_not_here(
    network: Detector, images: list[Image], tmp_path: Path, capability: str
) -> None:
    """Suppression inside, layers typed as asked, the graph compared with torch, refused here."""
    pytest.importorskip("tensorrt_rtx_bindings")
    pixels = [letterbox(image, (96, 128))[0] for image in images]
    plan = calibrate(network.deployed(), [torch.from_numpy(np.stack(pixels))])
    precisions: tuple[Precision, ...] = ("f32", "f16", "int8") if capability != "7.5" else ("f16",)
    for precision in precisions:
        form = Form(
            format="tensorrt", precision=precision, engine=plan_engine(precision, capability)
        )
        done = export_bundle(
            network, tmp_path / precision, form, names=["a", "b", "c"], images=images,
            facts={"trained": False}, plan=plan if precision == "int8" else None,
        )  # fmt: skip
        card = done.card
        assert done.speed is None and card["measured_fps"] is None
        assert card["engine"]["compute_capability"] == capability
        assert card["engine"]["ahead_of_time"]
        assert card["parity"]["in"] == "onnxruntime" and card["parity"]["matched"] > 0
        if precision == "int8":
            assert card["executed"]["int8"] >= 0.9 * len(plan.ranges)
        else:
            assert set(card["executed"]) == {precision}
        if gpu_here() is None:
            with pytest.raises(DeviceError, match=rf"compute capability {capability}, here is no"):
                Bundle(done.folder)


def test_an_engine_is_as_large_as_its_weights_in_their_precision() -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    architecture = preset("tiny").with_(input_size=(224, 224))
    network = Detector(architecture).eval()
    weights = count_params(architecture)
    for precision, bytes_each in (("f32", 4), ("f16", 2)):
        graph = network.to_onnx(style=GraphStyle(precision=precision), padded=True)  # type: ignore[arg-type]
        data, _ = build_engine(graph.SerializeToString(), capability="SM89")
        assert bytes_each * weights < len(data) < 1.25 * bytes_each * weights


def test_what_an_engine_cannot_be_is_said_before_it_is_built(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not go together"):
        Form(format="tensorrt")
    with pytest.raises(UserError, match="do not go together"):
        Form(format="onnx", engine=Plan("tensorrt_rtx", "1.7", "8.9", ""))
    with pytest.raises(UserError, match="nothing but the GPU can check it"):
        Form(format="tensorrt", precision="bf16", engine=Plan("tensorrt_rtx", "1.7", "8.9", ""))
    with pytest.raises(UserError, match="--quantizer nncf: for --format openvino"):
        Form(precision="int8", nncf=np.zeros((1, 32, 32, 3), np.uint8))
    if gpu_here() is None:
        with pytest.raises(HeatError, match=r"--gpu 8\.9 builds for another|not installed"):
            plan_engine("f32", None)
    (tmp_path / "model.engine").write_bytes(b"an engine")
    with pytest.raises(BundleError, match="cannot be read"):
        read_engine(tmp_path / "model.engine")
