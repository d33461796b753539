"""The part of the CUDA runtime that timing an engine needs, through ctypes: no package but CUDA.

Not tested on a GPU: none was available.
"""

import ctypes
import ctypes.util
import importlib.util
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from supernet.errors import DeviceError

from .session import Array

HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2
CAPTURE_RELAXED = 2
LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")


class Cuda:
    """One stream on the current device."""

    def __init__(self) -> None:
        """Load the runtime library and open a stream; raises `DeviceError` without CUDA."""
        self._library = self._load()
        self.stream = ctypes.c_void_p()
        self._do("cudaStreamCreate", ctypes.byref(self.stream))
        self._graphs: list[ctypes.c_void_p] = []

    @staticmethod
    def _load() -> Any:
        found = ctypes.util.find_library("cudart")
        for name in (*LIBRARIES, *([found] if found else []), *_in_packages()):
            try:
                return ctypes.CDLL(name)
            except OSError:
                continue
        raise DeviceError("the CUDA runtime (libcudart) is not installed: install CUDA")

    def _do(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            text = self._library.cudaGetErrorString
            text.restype = ctypes.c_char_p
            raise DeviceError(f"{name} failed: {text(code).decode()}; look at nvidia-smi")

    def allocate(self, size_bytes: int) -> int:
        """Return the address of device memory."""
        address = ctypes.c_void_p()
        self._do("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(max(1, size_bytes)))
        return int(address.value or 0)

    def free(self, address: int) -> None:
        """Free device memory."""
        self._do("cudaFree", ctypes.c_void_p(address))

    def upload(self, address: int, array: Array) -> None:
        """Copy a contiguous array to the device, in the stream."""
        self._copy(address, array.ctypes.data, array.nbytes, HOST_TO_DEVICE)

    def download(self, array: Array, address: int) -> None:
        """Copy device memory into a contiguous array, in the stream."""
        self._copy(array.ctypes.data, address, array.nbytes, DEVICE_TO_HOST)

    def _copy(self, to: int, start: int, size_bytes: int, kind: int) -> None:
        self._do(
            "cudaMemcpyAsync",
            ctypes.c_void_p(to),
            ctypes.c_void_p(start),
            ctypes.c_size_t(size_bytes),
            ctypes.c_int(kind),
            self.stream,
        )

    def synchronize(self) -> None:
        """Wait until the stream is empty."""
        self._do("cudaStreamSynchronize", self.stream)

    def timed_ms(self, work: Callable[[], None]) -> float:
        """Return the milliseconds between an event before and one after some work."""
        events: list[ctypes.c_void_p] = []
        try:
            for _ in range(2):
                event = ctypes.c_void_p()
                self._do("cudaEventCreate", ctypes.byref(event))
                events.append(event)
            self._do("cudaEventRecord", events[0], self.stream)
            work()
            self._do("cudaEventRecord", events[1], self.stream)
            self._do("cudaEventSynchronize", events[1])
            elapsed = ctypes.c_float()
            self._do("cudaEventElapsedTime", ctypes.byref(elapsed), *events)
            return float(elapsed.value)
        finally:
            for event in events:
                with suppress(DeviceError):
                    self._do("cudaEventDestroy", event)

    def captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record work as a CUDA graph and return what launches it."""
        graph, instance = ctypes.c_void_p(), ctypes.c_void_p()
        self._do("cudaStreamBeginCapture", self.stream, ctypes.c_int(CAPTURE_RELAXED))
        work()
        self._do("cudaStreamEndCapture", self.stream, ctypes.byref(graph))
        self._do(
            "cudaGraphInstantiateWithFlags", ctypes.byref(instance), graph, ctypes.c_ulonglong(0)
        )
        self._graphs.append(instance)
        self._do("cudaGraphDestroy", graph)
        return lambda: self._do("cudaGraphLaunch", instance, self.stream)

    def close(self) -> None:
        """Destroy the recorded graphs and the stream; a second call does nothing."""
        for instance in self._graphs:
            with suppress(DeviceError):
                self._do("cudaGraphExecDestroy", instance)
        self._graphs.clear()
        if self.stream.value:
            with suppress(DeviceError):
                self._do("cudaStreamDestroy", self.stream)
        self.stream = ctypes.c_void_p()


def _in_packages() -> list[str]:
    """Return the CUDA runtime libraries that NVIDIA's Python packages hold, newest first."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = (path for folder in folders for path in Path(folder).glob("*/lib/libcudart.so.*"))
    return sorted(map(str, found), reverse=True)
