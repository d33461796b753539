"""TensorRT engines: building them, their sidecar files, and loading them again.

Two packages with one interface: `tensorrt` (10 and 11), which builds for this machine's GPU, and
`tensorrt_rtx`, which also builds ahead of time for others, but has no NMS. Every network is
strongly typed: the graph's own types are the precision, INT8 is the graph's QuantizeLinear.

Needs TensorRT only; the `detect.py` of a TensorRT bundle and every probe carry this file's text.
"""

import importlib
import json
import os
import subprocess
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

from supernet.errors import BundleError, DeviceError, UserError

from .executed import HEAVY

WORKSPACE_BYTES = 2**31
ENGINE_SUFFIX = ".engine"

TENSORRT_MODULES = {
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt_rtx",
    "tensorrt_rtx_bindings": "tensorrt_rtx",  # the wheels without NVIDIA's wrapper
}
"""Modules with TensorRT's interface and the package of each, the first choice first."""


def tensorrt() -> tuple[Any, str]:
    """Return TensorRT's module and its package: `tensorrt`, or `tensorrt_rtx` in its place."""
    for module, package in TENSORRT_MODULES.items():
        with suppress(ImportError):
            return importlib.import_module(module), package
    raise UserError(
        "TensorRT is not installed: pip install 'heatdetr[tensorrt]', or 'heatdetr[rtx]' to build "
        "for other machines"
    )


def message_log() -> Any:
    """Return a logger that keeps TensorRT's last error in `last` and prints nothing."""
    trt, _ = tensorrt()

    class MessageLog(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.last = "no message"

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last = " ".join(message.split())[:300]

    return MessageLog()


class Built(NamedTuple):
    """A serialised engine, and what it was built of."""

    data: bytes
    precisions: dict[str, int]
    """How many heavy layers have each precision."""
    outputs: list[str]
    """Names in the model's order, which an engine need not keep."""


def build_engine(model: bytes, *, capability: str = "", cache: Path | None = None) -> Built:
    """Build a serialised engine from an ONNX model; the model's own types are the precision.

    `capability`, such as SM86, builds for another GPU than this machine's and needs none here; only
    `tensorrt_rtx` can. `cache` is a file of kernel timings that later builds start from.
    """
    trt, package = tensorrt()
    log = message_log()
    builder = trt.Builder(log)
    # The last TensorRT of Pascal asks for both; from 11 on there is nothing else, and no flag.
    flags = trt.NetworkDefinitionCreationFlag
    asked = [getattr(flags, name, None) for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED")]
    network = builder.create_network(sum(1 << int(flag) for flag in asked if flag is not None))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise BundleError(f"TensorRT cannot parse the model: {errors[:300]}; export it again")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # f32 is f32
    precisions = typed_precisions(network)
    if not hasattr(flags, "STRONGLY_TYPED"):  # before 9 the builder asks for what may be used
        for name, flag in (("f16", "FP16"), ("int8", "INT8")):
            if name in precisions and hasattr(trt.BuilderFlag, flag):
                config.set_flag(getattr(trt.BuilderFlag, flag))
    if capability:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    timings = None
    if cache is not None and package != "tensorrt_rtx":  # which has no timing cache
        timings = config.create_timing_cache(cache.read_bytes() if cache.exists() else b"")
        config.set_timing_cache(timings, False)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise DeviceError(f"TensorRT built no engine: {log.last}; try another --precision")
    if cache is not None and timings is not None:
        temporary = cache.with_name(f".{cache.name}.tmp")
        temporary.write_bytes(bytes(timings.serialize()))
        temporary.replace(cache)
    outputs = [network.get_output(index).name for index in range(network.num_outputs)]
    return Built(bytes(built), precisions, outputs)


def typed_precisions(network: Any) -> dict[str, int]:
    """Return how many heavy layers of a parsed network are typed in each precision.

    A strongly typed network is built in these types and no others.
    """
    trt, _ = tensorrt()
    names = {trt.float32: "f32", trt.float16: "f16"}
    if hasattr(trt, "bfloat16"):  # from 9 on
        names[trt.bfloat16] = "bf16"
    heavy = (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    quantized = {
        layer.get_output(0).name for layer in layers if layer.type == trt.LayerType.DEQUANTIZE
    }
    found: Counter[str] = Counter()
    for layer in layers:
        if layer.type in heavy:
            kind = layer.get_output(0).dtype
            int8 = layer.get_input(0).name in quantized
            found["int8" if int8 else names.get(kind, str(kind))] += 1
    return dict(found)


def layer_precisions(inspected: str) -> dict[str, int]:
    """Count the heavy layers of an engine inspector's JSON by precision of their first input.

    As `typed_precisions` does: the output of a convolution in INT8 is in float where no other
    follows.
    """
    found: Counter[str] = Counter()
    for layer in json.loads(inspected).get("Layers", []):
        if not isinstance(layer, dict):
            continue
        kind = f"{layer.get('LayerType', '')} {layer.get('Name', '')}".lower()
        tensors = layer.get("Inputs") or layer.get("Outputs") or [{}]
        described = str(tensors[0].get("Format/Datatype", "")).lower()
        if any(part in kind for part in HEAVY):
            for word, name in (
                ("int8", "int8"), ("fp16", "f16"), ("half", "f16"), ("bf16", "bf16"),
                ("bfloat16", "bf16"), ("fp32", "f32"), ("float", "f32"),
            ):  # fmt: skip
                if word in described:
                    found[name] += 1
                    break
    return dict(found)


DRIVER_S = 30.0
"""Most seconds for nvidia-smi."""


def seen_by_cuda() -> list[str]:
    """Return nvidia-smi's options for the GPUs that CUDA_VISIBLE_DEVICES leaves, none for all.

    CUDA's numbers are nvidia-smi's only in the order PCI_BUS_ID; UUIDs are the same always.
    """
    asked = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    numbered = any(word.strip().isdecimal() for word in asked.split(","))
    if not asked or (numbered and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID"):
        return []
    return ["-i", asked]


def ask_driver(fields: str) -> str:
    """Return nvidia-smi's lines of these fields; "" where it is absent, fails or does not answer.

    Of the GPUs that CUDA_VISIBLE_DEVICES leaves, without units.
    """
    command = ["nvidia-smi", *seen_by_cuda(), f"--query-gpu={fields}"]
    command.append("--format=csv,noheader,nounits")
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=DRIVER_S)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def gpu_here() -> tuple[str, str] | None:
    """Return name and compute capability of the first GPU, None where there is none."""
    lines = ask_driver("name,compute_cap").strip().splitlines()
    if not lines or "," not in lines[0]:
        return None
    name, _, capability = lines[0].rpartition(",")
    return name.strip(), capability.strip()


class Sidecar(TypedDict):
    """The JSON file beside an engine: where it can be loaded."""

    package: str
    """`tensorrt` or `tensorrt_rtx`."""
    version: str
    compute_capability: str
    gpu: str | None
    """Name of the GPU it was built on; None where it was built ahead of time."""
    ahead_of_time: bool
    outputs: NotRequired[list[str]]
    """Names in the order of the card; engines of 0.1.0 have none."""


def sidecar_of(engine: Path) -> Path:
    """Return the path of an engine's sidecar."""
    return engine.with_name(f"{engine.name}.json")


def read_engine(path: Path) -> tuple[bytes, list[str]]:
    """Read an engine, and the names of its outputs in the model's order, if they are known.

    One of another GPU or TensorRT is refused by name.
    """
    sidecar = sidecar_of(path)
    try:
        facts: Sidecar = json.loads(sidecar.read_text(encoding="utf-8"))
        data = path.read_bytes()
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{sidecar} or its engine cannot be read ({error}): export it") from None
    _, package = tensorrt()
    check_sidecar(facts, package, tensorrt_version(), gpu_here())
    return data, facts.get("outputs", [])


def tensorrt_version() -> str:
    """Return the version of the TensorRT that is used."""
    return str(tensorrt()[0].__version__)


def check_sidecar(facts: Sidecar, package: str, version: str, gpu: tuple[str, str] | None) -> None:
    """Refuse, by name, an engine of another GPU or TensorRT."""
    if (package, version) != (facts["package"], facts["version"]):
        raise UserError(
            f"the engine was built by {facts['package']} {facts['version']}, here is {package} "
            f"{version}: export it again here, or pip install "
            f"{facts['package'].replace('_', '-')}=={facts['version']}"
        )
    wanted = f"compute capability {facts['compute_capability']}"
    wanted += f" ({facts['gpu']})" if facts["gpu"] else ""
    if gpu is None:
        raise DeviceError(f"the engine is for {wanted}, here is no NVIDIA GPU: run it there")
    # Tactics are chosen on one GPU; on another of the same capability they may be slow.
    if facts["compute_capability"] != gpu[1] or (facts["gpu"] and facts["gpu"] != gpu[0]):
        raise DeviceError(
            f"the engine is for {wanted}, here is {gpu[0]} ({gpu[1]}): heat export --format "
            "tensorrt on this machine"
        )
