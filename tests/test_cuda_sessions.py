"""Sessions on CUDA, with fakes of CUDA's library: what is timed, refused and given back."""

from typing import Any

import numpy as np
import pytest

from deploy.edge.gpu import OnnxRuntimeCudaSession, _free
from latency_tables.models import write_network
from supernet.errors import DeviceError
from supernet.heatdetr.architecture import preset


def test_onnxruntime_on_cuda_is_timed_with_the_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    """As TensorRT is: a frame comes from the host, whatever runs on it."""
    events: list[str] = []

    class Binding:
        def bind_cpu_input(self, name: str, array: Any) -> None:
            events.append("upload")

        def bind_ortvalue_input(self, name: str, value: str) -> None:
            assert (name, value) == ("x0", "cuda")

        def bind_output(self, name: str, device: str) -> None:
            pass

        def synchronize_inputs(self) -> None:
            pass

    class Session:
        def io_binding(self) -> Binding:
            return Binding()

        def get_outputs(self) -> list[Any]:
            return []

        def run_with_iobinding(self, binding: Binding) -> None:
            events.append("run")

    class Cuda:
        def timed_ms(self, work: Any) -> float:
            events.append("start")
            work()
            events.append("end")
            return 1.0

    class OrtValue:
        @staticmethod
        def ortvalue_from_numpy(array: Any, device: str, index: int) -> str:
            events.append("before")
            return device

    class Ort:
        pass

    Ort.OrtValue = OrtValue  # type: ignore[attr-defined]
    session = object.__new__(OnnxRuntimeCudaSession)
    session._session, session._cuda = Session(), Cuda()  # type: ignore[assignment]
    session._ort = Ort
    image, features = np.zeros(2, np.uint8), np.zeros(2, np.float32)
    assert session.timed({"image": image, "x0": features}) == 1.0
    assert events == ["before", "start", "upload", "run", "end"]


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_session_that_fell_back_to_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime itself is real: where it has no CUDA it opens sessions on the CPU."""
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has a CUDA provider")

    class Cuda:
        stream = type("Stream", (), {"value": 0})
        closed = False

        def close(self) -> None:
            Cuda.closed = True

    monkeypatch.setattr("deploy.edge.gpu.Cuda", Cuda)
    model = write_network(preset("nano", input_size=(64, 64))).onnx
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(DeviceError, match="cannot load its CUDA provider"):
        OnnxRuntimeCudaSession(model, 1)
    assert Cuda.closed


def test_a_session_gives_its_device_memory_back() -> None:
    freed: list[int] = []

    class Cuda:
        def free(self, address: int) -> None:
            freed.append(address)

        def close(self) -> None:
            freed.append(0)

    class Growing:
        address = 3

    _free(Cuda(), {"a": 1, "b": 2}, {"c": Growing()})  # type: ignore[arg-type]
    assert sorted(freed) == [0, 1, 2, 3]
