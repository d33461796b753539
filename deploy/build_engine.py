"""Builds the TensorRT engine of a bundle, for this machine's GPU or ahead of time for another."""

import json
from dataclasses import dataclass
from pathlib import Path

from supernet.errors import DeviceError
from supernet.graph.style import OLDEST_OPSET

from .capability import CAPABILITIES, check_capability
from .edge.engine import (
    Sidecar,
    build_engine,
    gpu_here,
    sidecar_of,
    tensorrt,
    tensorrt_version,
)


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """The GPU that an engine is built for, and the TensorRT that builds it."""

    package: str
    """`tensorrt` or `tensorrt_rtx`."""
    version: str
    capability: str
    gpu: str
    """Name of the GPU it is built on; empty where it is built ahead of time."""

    @property
    def here(self) -> bool:
        """Whether the engine can run on this machine."""
        return bool(self.gpu)

    @property
    def has_nms(self) -> bool:
        """Whether the native NMS layer can be built."""
        return self.package == "tensorrt"

    @property
    def opset(self) -> int | None:
        """ONNX opset that its parser supports; None for the default."""
        old = self.package == "tensorrt" and int(self.version.split(".")[0]) < 10
        return OLDEST_OPSET if old else None

    def sidecar(self) -> Sidecar:
        """Return the facts that are checked when the engine is loaded."""
        return {
            "package": self.package,
            "version": self.version,
            "compute_capability": self.capability,
            "gpu": self.gpu or None,
            "ahead_of_time": not self.here,
        }

    def build(self, model: bytes, path: Path, cache: Path | None) -> dict[str, int]:
        """Write the engine and its sidecar; return the heavy layers' precisions."""
        target = "" if self.here else f"SM{self.capability.replace('.', '')}"
        built = build_engine(model, capability=target, cache=cache)
        path.write_bytes(built.data)
        facts = {**self.sidecar(), "outputs": built.outputs}
        sidecar_of(path).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        return built.precisions


def plan_engine(precision: str, capability: str | None) -> EnginePlan:
    """Check what an engine needs before anything is built; `capability` None means this GPU's."""
    _, package = tensorrt()
    version, gpu = tensorrt_version(), gpu_here()
    if capability is None:
        if gpu is None:
            raise DeviceError(
                "no NVIDIA GPU is here: --gpu 8.9 builds for another with tensorrt_rtx"
            )
        capability = gpu[1]
    here = gpu is not None and gpu[1] == capability
    if capability in CAPABILITIES or not here:  # a GPU newer than this list may be here
        check_capability(capability, precision, package, version)
    if not here and package != "tensorrt_rtx":
        raise DeviceError(
            f"{package} builds for the GPU that is here only: pip install 'heatdetr[rtx]' to build "
            f"for {capability}, or build there"
        )
    return EnginePlan(package, version, capability, gpu[0] if gpu is not None and here else "")
