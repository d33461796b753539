"""The interface of a loaded model, and the runtimes that are installed.

Needs numpy and the runtime only; every bundle's `detect.py` and every probe carries this file's
text.
"""

import importlib
import importlib.metadata
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from supernet.errors import UserError

PRECISIONS = ("f32", "f16", "bf16", "int8")

PIP_NAME = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "torch": "torch",
}


ALSO_NAMED = {
    "onnxruntime": ("onnxruntime-gpu",),
    "tensorrt": ("tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
}
"""Other packages that contain a runtime."""


Array = npt.NDArray[Any]
"""Numbers of any type."""
Feeds = Mapping[str, Array]
"""Inputs of a model by name."""


def frames_of(inputs: Feeds) -> Feeds:
    """Return the inputs that a deployed network is given anew for each frame: the images, uint8.

    The others are feature maps of a probe, which in a network come from the operator before: a
    runtime on a GPU is timed with them on the device already.
    """
    return {name: array for name, array in inputs.items() if array.dtype == np.uint8}


class Session(Protocol):
    """A loaded model."""

    def run(self, inputs: Feeds) -> list[Array]:
        """Execute once; inputs by name, outputs in the model's order."""

    def timed(self, inputs: Feeds) -> float:
        """Execute once and return the milliseconds it took."""

    def close(self) -> None:
        """Release the model; it cannot be executed afterwards."""

    def __enter__(self) -> Self:
        """Return the session."""

    def __exit__(self, *raised: object) -> None:
        """Close it."""


TELEMETRY = "openvino_telemetry"


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Keep what is imported in the block from reporting to its makers.

    OpenVINO reports every import to Google Analytics, without asking, until the user declines
    (2026.4). Where the package is missing its tools use a stub that reports nothing. ONNX Runtime
    reports to Microsoft (1.31), unless this variable is set before it is loaded.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    had, before = TELEMETRY in sys.modules, sys.modules.get(TELEMETRY)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # importing it is an ImportError
    try:
        yield
    finally:
        del sys.modules[TELEMETRY]
        if had and before is not None:
            sys.modules[TELEMETRY] = before


def import_runtime(runtime: str) -> Any:
    """Import a runtime's package; a missing one is a `UserError` that names its package.

    OpenVINO and ONNX Runtime are imported without their telemetry.
    """
    try:
        with without_telemetry():
            return importlib.import_module(runtime)
    except ModuleNotFoundError:
        raise UserError(
            f"runtime {runtime} is not installed: pip install {PIP_NAME[runtime]}"
        ) from None
    except ImportError as error:  # too little memory, or a library that is not of this system
        raise UserError(f"runtime {runtime} cannot be loaded: {error}") from None


class WallClock:
    """Times `run` from the outside, as a caller sees it, and closes at the end of a `with`."""

    run: Callable[[Feeds], list[Array]]
    close: Callable[[], None]

    def __enter__(self) -> Self:
        """Return the session."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close it."""
        self.close()

    def timed(self, inputs: Feeds) -> float:
        """Execute once and return the milliseconds it took."""
        start = time.perf_counter()
        self.run(inputs)
        return (time.perf_counter() - start) * 1e3


def runtime_version(runtime: str) -> str:
    """Return the installed version of a runtime."""
    if runtime not in PIP_NAME:
        raise UserError(f"unknown runtime {runtime!r}: one of {', '.join(PIP_NAME)}")
    installed = installed_runtimes()
    # TensorRT comes in two packages with one interface.
    names = ("tensorrt", "tensorrt_rtx") if runtime == "tensorrt" else (runtime,)
    version = next((installed[name] for name in names if installed[name]), None)
    if version is None:
        import_runtime(runtime)
        raise UserError(f"runtime {runtime} has no version: pip install {PIP_NAME[runtime]}")
    return version


def installed_runtimes() -> dict[str, str | None]:
    """Return the version of every runtime HEAT knows, None where it is not installed."""
    return {
        runtime: installed(package, *ALSO_NAMED.get(runtime, ()))[1]
        for runtime, package in PIP_NAME.items()
    }


def installed(*packages: str) -> tuple[str, str | None]:
    """Return the first of these packages that is installed and its version; the first and None."""
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            return name, importlib.metadata.version(name)
    return packages[0], None
