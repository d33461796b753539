"""One small door to the runtimes that execute exported models.

Needs numpy and the runtime only; every bundle's `detect.py` carries this file's text.
"""

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from supernet.errors import BundleError, UserError


class Session(Protocol):
    """A loaded model."""

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Execute once; inputs by name, outputs in the model's order, all numpy arrays."""


PIP_NAME = {"onnxruntime": "onnxruntime", "openvino": "openvino"}


def _import(runtime: str) -> Any:
    try:
        return importlib.import_module(runtime)
    except ImportError:
        raise UserError(
            f"runtime {runtime} is not installed: pip install {PIP_NAME[runtime]}"
        ) from None


class OnnxRuntimeSession:
    """ONNX Runtime on the CPU."""

    def __init__(self, model: bytes | Path, threads: int) -> None:
        """Load the model with all graph optimisations."""
        ort = _import("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that spin after a run would steal time from whatever runs next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._session = ort.InferenceSession(
            str(model) if isinstance(model, Path) else model,
            options,
            providers=["CPUExecutionProvider"],
        )

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Execute once."""
        return list(self._session.run(None, dict(inputs)))


class OpenVinoSession:
    """OpenVINO on the CPU, float32 unless told otherwise: its own default may be bfloat16."""

    def __init__(self, model: bytes | Path, threads: int) -> None:
        """Compile the model for latency."""
        openvino = _import("openvino")
        core = openvino.Core()
        network = core.read_model(model if isinstance(model, bytes) else str(model))
        self._compiled = core.compile_model(
            network,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": threads,
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": "1",
            },
        )
        self._request = self._compiled.create_infer_request()

    def run(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Execute once."""
        results = self._request.infer(dict(inputs), share_inputs=True)
        return [results[output].copy() for output in self._compiled.outputs]


RUNTIMES: dict[str, Callable[[bytes | Path, int], Session]] = {
    "onnxruntime": OnnxRuntimeSession,
    "openvino": OpenVinoSession,
}


def open_session(runtime: str, model: bytes | Path, threads: int) -> Session:
    """Load a model file or its bytes; an unreadable model is a `BundleError`."""
    if runtime not in RUNTIMES:
        raise UserError(f"unknown runtime {runtime!r}: one of {', '.join(RUNTIMES)}")
    _import(runtime)
    try:
        return RUNTIMES[runtime](model, threads)
    except Exception as error:
        what = model if isinstance(model, Path) else "the model"
        reason = str(error).strip().splitlines()[-1][:200] if str(error).strip() else ""
        raise BundleError(f"{runtime} cannot load {what}: {reason}; export it again") from error


def runtime_version(runtime: str) -> str:
    """Return the installed version of a runtime."""
    if runtime not in RUNTIMES:
        raise UserError(f"unknown runtime {runtime!r}: one of {', '.join(RUNTIMES)}")
    _import(runtime)
    return importlib.metadata.version(PIP_NAME[runtime])
