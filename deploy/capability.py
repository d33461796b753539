"""Which TensorRT runs on which NVIDIA GPU, and in which precisions.

From NVIDIA's support matrices of TensorRT 8.5 to 11 and TensorRT for RTX 1.x.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from supernet.errors import DeviceError, UserError

Version = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Capability:
    """What TensorRT offers on GPUs of one compute capability."""

    gpus: str
    last: Version | None = None
    """Last TensorRT that runs there; None for the newest."""
    rtx: bool = False
    """Whether `tensorrt_rtx` builds for it."""
    precisions: tuple[str, ...] = ("f32", "f16", "bf16", "int8")
    """Precisions that work there and are worth using."""


CAPABILITIES: Mapping[str, Capability] = {
    "6.1": Capability(gpus="GTX 1080 Ti, P40", last=(9, 3), precisions=("f32", "int8")),
    "7.0": Capability(gpus="V100", last=(10, 4), precisions=("f32", "f16", "int8")),
    "7.2": Capability(gpus="Jetson Xavier", last=(8, 5), precisions=("f32", "f16", "int8")),
    "7.5": Capability(gpus="T4, RTX 20", rtx=True, precisions=("f32", "f16", "int8")),
    "8.0": Capability(gpus="A100"),
    "8.6": Capability(gpus="RTX 30, A10", rtx=True),
    "8.7": Capability(gpus="Jetson Orin (JetPack 6)", last=(10, 7)),
    "8.9": Capability(gpus="RTX 40, L4", rtx=True),
    "9.0": Capability(gpus="H100, H200"),
    "10.0": Capability(gpus="B200"),
    "12.0": Capability(gpus="RTX 50", rtx=True),
}
"""By compute capability."""

RTX_NEEDS_F16 = "7.5"
"""There `tensorrt_rtx` has no f32 matrix products."""


def check_capability(capability: str, precision: str, package: str, version: str) -> None:
    """Refuse, by name, an engine that could not run on GPUs of a compute capability."""
    known = CAPABILITIES.get(capability)
    if known is None:
        raise UserError(
            f"compute capability {capability} is not known here: --gpu takes one of "
            f"{', '.join(CAPABILITIES)}"
        )
    where = f"compute capability {capability} ({known.gpus})"
    if precision not in known.precisions:
        raise DeviceError(f"{where} has no {precision}: --precision {known.precisions[-2]}")
    if package == "tensorrt_rtx":
        if not known.rtx:
            raise DeviceError(
                f"TensorRT for RTX builds nothing for {where}: install tensorrt on that machine"
            )
        if capability == RTX_NEEDS_F16 and precision == "f32":
            raise DeviceError(f"TensorRT for RTX has no f32 for {where}: --precision f16")
        return
    have = (int(version.split(".")[0]), int(version.split(".")[1]))
    if known.last is not None and have > known.last:
        major, minor = known.last
        first_without = f"{major}.{minor + 1}"
        raise DeviceError(
            f"TensorRT {version} does not run on {where}: pip install 'tensorrt<{first_without}'"
        )
