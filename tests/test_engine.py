"""TensorRT without a GPU: what is refused, and engines built ahead of time."""

import gc
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy.build_engine import EnginePlan, plan_engine
from deploy.capability import CAPABILITIES, check_capability
from deploy.edge.cuda import Cuda
from deploy.edge.detect import Bundle
from deploy.edge.engine import Built, build_engine, check_sidecar, gpu_here, read_engine
from deploy.edge.gpu import TensorRtSession
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
    with pytest.raises(UserError, match=r"5\.0 is not known here: --gpu takes one of"):
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
    return [draw(rng).pixels for _ in range(3)]


@pytest.mark.parametrize(
    "capability",
    ["8.6", *(pytest.param(c, marks=pytest.mark.slow) for c in ("8.9", "12.0")), "7.5"],
)
def test_true_engines_are_built_for_a_gpu_that_is_not_here(
    network: Detector, images: list[Image], tmp_path: Path, capability: str
) -> None:
    """Suppression inside, layers typed as asked, the graph compared with torch, refused here."""
    pytest.importorskip("tensorrt_rtx_bindings")
    network.decode.voting = True
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
        data, _, outputs = build_engine(graph.SerializeToString(), capability="SM89")
        assert bytes_each * weights < len(data) < 1.25 * bytes_each * weights
        assert outputs == [value.name for value in graph.graph.output]


def test_what_an_engine_cannot_be_is_said_before_it_is_built(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not go together"):
        Form(format="tensorrt")
    with pytest.raises(UserError, match="do not go together"):
        Form(format="onnx", engine=EnginePlan("tensorrt_rtx", "1.7", "8.9", ""))
    with pytest.raises(UserError, match="nothing but the GPU can check it"):
        Form(
            format="tensorrt", precision="bf16", engine=EnginePlan("tensorrt_rtx", "1.7", "8.9", "")
        )
    with pytest.raises(UserError, match="--quantizer nncf: for --format openvino"):
        Form(precision="int8", nncf=np.zeros((1, 32, 32, 3), np.uint8))
    if gpu_here() is None:
        with pytest.raises(HeatError, match=r"--gpu 8\.9 builds for another|not installed"):
            plan_engine("f32", None)
    (tmp_path / "model.engine").write_bytes(b"an engine")
    with pytest.raises(BundleError, match="cannot be read"):
        read_engine(tmp_path / "model.engine")


class Device:
    """Stands for CUDA's library and TensorRT: counts what is held on the device.

    No GPU is needed. The real libraries are not called: only that everything is given back is
    tested, not that CUDA takes it.
    """

    float32 = np.dtype(np.float32)
    nptype = staticmethod(np.dtype)

    class TensorIOMode:
        INPUT = "input"

    class IOutputAllocator:
        pass

    def __init__(
        self, *, fail_at: str = "", fixed: bool = True, outputs: str = "y", wanted: str = "y"
    ) -> None:
        self.held: dict[str, int] = {"memory": 0, "stream": 0, "graph": 0, "run": 0, "event": 0}
        self.live: list[weakref.ref[Any]] = []
        self.fail_at, self.fixed = fail_at, fixed
        self.outputs, self.wanted = outputs, wanted
        self.found = 16
        """Bytes of an output whose size depends on values."""
        self.Runtime = lambda log: FakeEngine(self)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)
        return partial(self._call, name)

    def _call(self, name: str, *arguments: Any) -> int | bytes:
        if name == "cudaGetErrorString":
            return b"out of memory"
        kinds = {
            "cudaStream": "stream", "cudaGraphExec": "run", "cudaGraphInst": "run",
            "cudaGraph": "graph", "cudaEvent": "event",
        }  # fmt: skip
        if name == self.fail_at:
            return 2
        if name in ("cudaMalloc", "cudaFree"):
            self.held["memory"] += 1 if name == "cudaMalloc" else -1
        elif name == "cudaStreamEndCapture":
            self.held["graph"] += 1
        elif name == "cudaEventElapsedTime":
            arguments[0]._obj.value = 1.5
        elif any(word in name for word in ("Create", "Destroy", "Instantiate")):
            kind = next(kind for start, kind in kinds.items() if name.startswith(start))
            self.held[kind] += -1 if "Destroy" in name else 1
        if name in ("cudaMalloc", "cudaStreamCreate", "cudaGraphInstantiateWithFlags"):
            arguments[0]._obj.value = 4096
        return 0


class FakeEngine:
    """A fake of an engine, and of its execution context: one input, outputs of four numbers."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.num_io_tensors = 1 + len(device.outputs)
        device.live.append(weakref.ref(self))

    def deserialize_cuda_engine(self, data: bytes) -> Any:
        return FakeEngine(self.device)

    def create_execution_context(self) -> Any:
        return FakeEngine(self.device)

    def get_tensor_name(self, index: int) -> str:
        return f"x{self.device.outputs}"[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name == "x" else "output"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (4,) if name == "x" or self.device.fixed else (-1,)

    def get_tensor_dtype(self, name: str) -> Any:
        return np.float32

    def set_tensor_address(self, name: str, address: int) -> None:
        pass

    def set_output_allocator(self, name: str, allocator: Any) -> None:
        self.allocator = allocator

    def execute_async_v3(self, stream: int) -> bool:
        if not self.device.fixed:
            address = self.allocator.reallocate_output_async("y", 0, self.device.found, 1, stream)
            assert address, "TensorRT wants an address for an empty tensor too"
            self.allocator.notify_shape("y", (self.device.found // 4,))
        return True


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[[Device], TensorRtSession]:
    def open_on(device: Device) -> TensorRtSession:
        monkeypatch.setattr(Cuda, "_load", staticmethod(lambda: device))
        monkeypatch.setattr("deploy.edge.gpu.tensorrt", lambda: (device, "tensorrt"))
        monkeypatch.setattr("deploy.edge.gpu.message_log", object)
        built = Built(b"engine", {}, [*device.wanted])
        monkeypatch.setattr("deploy.edge.gpu.build_engine", lambda data: built)
        return TensorRtSession(b"model", 1)

    return open_on


@pytest.mark.parametrize("fixed", [True, False])
def test_a_closed_session_holds_nothing_on_the_device(
    opened: Callable[[Device], TensorRtSession], fixed: bool
) -> None:
    device = Device(fixed=fixed)
    feeds = {"x": np.zeros(4, np.float32)}
    with opened(device) as session:
        for _ in range(2):
            assert session.run(feeds)[0].shape == (4,)
        assert session.timed(feeds) == 1.5
        assert device.held["memory"] == 2 and device.held["stream"] == 1
        assert (device.held["run"], device.held["graph"]) == ((1, 0) if fixed else (0, 0))
    assert set(device.held.values()) == {0}
    assert [ref for ref in device.live if ref() is not None] == [], "engine and context are gone"
    session.close()
    assert set(device.held.values()) == {0}, "closed twice, freed once"
    with pytest.raises(UserError, match="closed: open it again"):
        session.run(feeds)


def test_an_image_that_shows_nothing_has_an_output_too(
    opened: Callable[[Device], TensorRtSession],
) -> None:
    device = Device(fixed=False)
    feeds = {"x": np.zeros(4, np.float32)}
    with opened(device) as session:
        for device.found in (0, 16, 0):
            assert session.run(feeds)[0].shape == (device.found // 4,)


def test_outputs_come_in_the_order_of_the_model(
    opened: Callable[[Device], TensorRtSession],
) -> None:
    """An engine lists its tensors as it likes."""
    for wanted, order in (("abc", "abc"), ("", "bca")):
        with opened(Device(outputs="bca", wanted=wanted)) as session:
            assert "".join(session._outputs) == order


def test_what_is_not_closed_is_freed_with_the_last_reference(
    opened: Callable[[Device], TensorRtSession],
) -> None:
    for fixed in (True, False):
        device = Device(fixed=fixed)
        session = opened(device)
        session.run({"x": np.zeros(4, np.float32)})
        del session
        gc.collect()
        assert set(device.held.values()) == {0}


def test_a_session_that_fails_to_open_or_to_be_timed_holds_nothing(
    opened: Callable[[Device], TensorRtSession],
) -> None:
    device = Device(fail_at="cudaMalloc")
    with pytest.raises(DeviceError, match="out of memory"):
        opened(device)
    assert set(device.held.values()) == {0}
    device = Device(fail_at="cudaMemcpyAsync")
    with opened(device) as session, pytest.raises(DeviceError, match="cudaMemcpyAsync failed"):
        session.timed({"x": np.zeros(4, np.float32)})
    assert set(device.held.values()) == {0}
