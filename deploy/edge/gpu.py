"""Runtimes on CUDA devices: TensorRT, and ONNX Runtime's CUDA provider.

Building engines ahead of time with `tensorrt_rtx` is tested without a GPU. Running them was not
tested: no GPU was available.
"""

import io
import tempfile
import threading
import weakref
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from supernet.errors import BundleError, DeviceError, UserError

from .cuda import Cuda
from .engine import (
    ENGINE_SUFFIX,
    build_engine,
    layer_precisions,
    message_log,
    read_engine,
    tensorrt,
)
from .executed import profiled_precisions
from .session import Array, Feeds, WallClock, frames_of, import_runtime


class OutputAllocator(Protocol):
    """Device memory of a tensor whose size depends on values."""

    address: int
    shape: tuple[int, ...]


class TensorRtSession(WallClock):
    """A TensorRT engine, launched as a CUDA graph where its outputs have fixed sizes."""

    def __init__(self, model: bytes | Path, threads: int, precision: str = "f32") -> None:
        """Load an engine, or build it from an ONNX model, and allocate its tensors."""
        trt, _ = tensorrt()
        if isinstance(model, Path) and model.suffix == ENGINE_SUFFIX:
            engine, order = read_engine(model)
        else:
            data = model.read_bytes() if isinstance(model, Path) else model
            engine, _, order = build_engine(data)
        self._trt, self._cuda = trt, Cuda()
        self._log = message_log()
        self._engine = trt.Runtime(self._log).deserialize_cuda_engine(engine)
        if self._engine is None:
            self._cuda.close()
            raise BundleError(
                f"TensorRT cannot load the engine ({self._log.last}): export it again here"
            )
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        is_input = trt.TensorIOMode.INPUT
        self._inputs = [n for n in names if self._engine.get_tensor_mode(n) == is_input]
        outputs = [n for n in names if n not in self._inputs]
        # An engine lists its tensors in an order of its own.
        self._outputs = sorted(outputs, key=order.index) if set(order) == {*outputs} else outputs
        self._memory: dict[str, int] = {}
        self._one = threading.Lock()  # one context, stream and set of tensors for all threads
        self._allocators: dict[str, OutputAllocator] = {}
        self._launch: Callable[[], None] | None = None
        # For callers that do not close it, and where an allocation below fails.
        self._freed = weakref.finalize(self, _free, self._cuda, self._memory, self._allocators)
        self._freed.atexit = False
        try:
            for name in names:
                self._allocate(name)
        except BaseException:
            self._freed()
            raise

    def _allocate(self, name: str) -> None:
        """Allocate a tensor's memory, or let the engine do so where the size is unknown."""
        shape = tuple(self._engine.get_tensor_shape(name))
        if any(side < 0 for side in shape):
            self._allocators[name] = _growing(self._trt, self._cuda)
            self._context.set_output_allocator(name, self._allocators[name])
        else:
            size = int(np.prod(shape, dtype=np.int64)) * self._dtype(name).itemsize
            self._memory[name] = self._cuda.allocate(size)
            self._context.set_tensor_address(name, self._memory[name])

    def declared(self) -> list[tuple[str, list[int], str]]:
        """Return name, shape and type of every input."""
        return [
            (name, list(self._engine.get_tensor_shape(name)), str(self._dtype(name)))
            for name in self._inputs
        ]

    def _dtype(self, name: str) -> np.dtype[np.generic]:
        dtype: np.dtype[np.generic] = np.dtype(
            self._trt.nptype(self._engine.get_tensor_dtype(name))
        )
        return dtype

    def close(self) -> None:
        """Release the device memory, the stream and the engine; a second call does nothing."""
        if self._freed.alive:
            with suppress(DeviceError):  # after a failed run there is nothing to wait for
                self._cuda.synchronize()
        self._launch = self._context = self._engine = None
        self._freed()

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._cuda.stream.value):
            raise DeviceError("TensorRT could not run the engine: look at nvidia-smi")

    def _upload(self, inputs: Feeds) -> None:
        for name, given in inputs.items():
            array = np.ascontiguousarray(given, dtype=self._dtype(name))
            self._cuda.upload(self._memory[name], array)

    def _ready(self, inputs: Feeds) -> Callable[[], None]:
        """Return what launches the engine, after a first run on these inputs."""
        if not self._freed.alive:
            raise UserError("this TensorRT session is closed: open it again")
        if self._launch is None:
            self._upload(inputs)
            self._enqueue()
            self._cuda.synchronize()
            # A CUDA graph cannot have sizes that depend on values.
            fixed = not self._allocators
            self._launch = self._cuda.captured(self._enqueue) if fixed else self._enqueue
        return self._launch

    def run(self, inputs: Feeds) -> list[Array]:
        """Execute once; outputs as numpy arrays."""
        with self._one:
            return self._run(inputs)

    def _run(self, inputs: Feeds) -> list[Array]:
        launch = self._ready(inputs)
        self._upload(inputs)
        launch()
        self._cuda.synchronize()
        outputs = []
        for name in self._outputs:
            allocator = self._allocators.get(name)
            shape = allocator.shape if allocator else tuple(self._engine.get_tensor_shape(name))
            array = np.empty(shape, dtype=self._dtype(name))
            self._cuda.download(array, allocator.address if allocator else self._memory[name])
            outputs.append(array)
        self._cuda.synchronize()
        return outputs

    def timed(self, inputs: Feeds) -> float:
        """Execute once between two events, upload of images included (`frames_of`)."""
        with self._one:
            launch = self._ready(inputs)

            def work() -> None:
                self._upload(frames_of(inputs))
                launch()

            return self._cuda.timed_ms(work)

    def executed(self, inputs: Feeds) -> dict[str, int]:
        """Return how many heavy layers the engine has in each precision, by its inspector."""
        inspector = self._engine.create_engine_inspector()
        form = self._trt.LayerInformationFormat.JSON
        return layer_precisions(inspector.get_engine_information(form))


def _free(cuda: Cuda, memory: dict[str, int], allocators: dict[str, OutputAllocator]) -> None:
    """Free what a session allocated on the device."""
    for address in (*memory.values(), *(each.address for each in allocators.values())):
        if address:
            with suppress(DeviceError):
                cuda.free(address)
    cuda.close()


def _growing(trt: Any, cuda: Cuda) -> OutputAllocator:
    """Return an output allocator for a tensor whose size depends on values."""

    class Growing(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.address, self._size, self.shape = 0, 0, ()

        def reallocate_output_async(
            self, name: str, memory: int, size: int, alignment: int, stream: int
        ) -> int:
            return self.reallocate_output(name, memory, size, alignment)

        def reallocate_output(self, name: str, memory: int, size: int, alignment: int) -> int:
            # The one that TensorRT below 10 calls. Nothing has an address too.
            size = max(1, size)
            if size > self._size:
                if self.address:
                    cuda.free(self.address)
                self.address, self._size = cuda.allocate(size), size
            return self.address

        def notify_shape(self, name: str, shape: Any) -> None:
            self.shape = tuple(shape)

    return Growing()


class OnnxRuntimeCudaSession(WallClock):
    """ONNX Runtime with its CUDA provider."""

    PROVIDER = "CUDAExecutionProvider"

    def __init__(self, model: bytes | Path, threads: int, precision: str = "f32") -> None:
        """Load the model; it holds the precision, and f32 is f32, not TF32."""
        self._ort = import_runtime("onnxruntime")
        if self.PROVIDER not in self._ort.get_available_providers():
            raise DeviceError("this ONNX Runtime has no CUDA provider: pip install onnxruntime-gpu")
        preload = getattr(self._ort, "preload_dlls", None)
        if preload is not None:  # CUDA's and cuDNN's libraries of NVIDIA's wheels; it prints
            with redirect_stdout(io.StringIO()):
                preload()
        self._cuda = Cuda()
        self._model = str(model) if isinstance(model, Path) else model
        try:
            self._session = self._open("")
        except BaseException:
            self._cuda.close()
            raise

    def _open(self, profile: str) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        if profile:
            options.enable_profiling, options.profile_file_prefix = True, profile
        provider = {"use_tf32": "0", "user_compute_stream": str(self._cuda.stream.value)}
        providers = [(self.PROVIDER, provider), "CPUExecutionProvider"]
        session = self._ort.InferenceSession(self._model, options, providers=providers)
        if self.PROVIDER not in session.get_providers():  # it says nothing and takes the CPU
            raise DeviceError(
                "ONNX Runtime cannot load its CUDA provider, CUDA or cuDNN are not found: "
                "pip install 'onnxruntime-gpu[cuda,cudnn]'"
            )
        return session

    def run(self, inputs: Feeds) -> list[Array]:
        """Execute once."""
        return list(self._session.run(None, dict(inputs)))

    def close(self) -> None:
        """Drop the model, then the stream that it runs in."""
        self._session = None
        self._cuda.close()

    def timed(self, inputs: Feeds) -> float:
        """Execute once between two events, upload of images included, as TensorRT is timed.

        Outputs stay on the device.
        """
        binding = self._session.io_binding()
        frames = frames_of(inputs)
        for name in inputs.keys() - frames.keys():
            map_on_device = self._ort.OrtValue.ortvalue_from_numpy(inputs[name], "cuda", 0)
            binding.bind_ortvalue_input(name, map_on_device)
        for output in self._session.get_outputs():
            binding.bind_output(output.name, "cuda")

        def work() -> None:
            for name, array in frames.items():
                binding.bind_cpu_input(name, array)
            binding.synchronize_inputs()
            self._session.run_with_iobinding(binding)

        return self._cuda.timed_ms(work)

    def executed(self, inputs: Feeds) -> dict[str, int]:
        """Return the precision of the heavy nodes, by ONNX Runtime's profile."""
        with tempfile.TemporaryDirectory() as folder:
            session = self._open(str(Path(folder) / "run"))
            session.run(None, dict(inputs))
            return profiled_precisions(Path(session.end_profiling()), self.PROVIDER)


GPU_RUNTIMES = {"tensorrt": TensorRtSession, "onnxruntime": OnnxRuntimeCudaSession}
