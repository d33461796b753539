"""Stage 1: what is there. Card, driver, clocks, versions, and the rates that a roofline needs."""

import importlib.metadata
import platform
import warnings
from collections.abc import Callable
from contextlib import suppress

import torch
from clock import race_ms
from stage import Stage, median_ms

from latency_tables.probe.machine import detect_cpu, detect_gpus

PACKAGES = (
    "torch", "triton", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt",
    "tensorrt-rtx-cu13-bindings", "transformers", "opencv-python-headless", "pandas", "scipy",
    "safetensors", "rich", "jinja2", "matplotlib", "pytest", "pytest-xdist",
    "cyclopts", "optuna", "pycocotools", "pillow", "packaging", "pyyaml",
)  # fmt: skip
NODES = 200
"""Kernels of the CUDA graph that shows what it takes to start one."""


def main() -> None:
    """Look around."""
    stage = Stage("here")
    gpus = detect_gpus()
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        versions[name] = None
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    stage.leave(
        python=platform.python_version(),
        packages=versions,
        cpu=detect_cpu().to_json(),
        gpus=[gpu.to_json() for gpu in gpus],
    )
    with suppress(ImportError):
        import onnxruntime

        stage.leave(onnxruntime_providers=onnxruntime.get_available_providers())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if not usable and not stage.rehearse:
        why = "; ".join(str(warning.message).splitlines()[0] for warning in caught)
        there = f"driver {gpus[0].driver}" if gpus else "no NVIDIA driver"
        raise SystemExit(
            f"torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use a GPU here "
            f"({there}{'; ' + why if why else ''}): install a driver for that CUDA, or a torch "
            "for this driver"
        )
    if usable:
        facts = torch.cuda.get_device_properties(0)
        stage.leave(
            card=facts.name,
            capability=f"{facts.major}.{facts.minor}",
            multiprocessors=facts.multi_processor_count,
            memory_gib=round(facts.total_memory / 2**30, 1),
            bf16=torch.cuda.is_bf16_supported(),
            cudnn=torch.backends.cudnn.version(),
        )
    stage.leave(rates=rates(stage))


def rates(stage: Stage) -> dict[str, float]:
    """Return copy bandwidth, matrix products by precision, and the start of a graph's kernels."""
    device = stage.device
    side, numbers = (256, 2**20) if stage.rehearse else (8192, 2**29)
    source = torch.rand(numbers, device=device)
    target = torch.empty_like(source)
    entrants: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
    for name, dtype in (("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)):
        left = torch.randn(side, side, device=device, dtype=dtype)
        entrants[name] = lambda left=left: left @ left
    few = torch.zeros(32, device=device)

    def nodes(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        (x,) = inputs
        for _ in range(NODES):
            x = x + 1
        return [x]

    with torch.inference_mode():
        entrants["graph"] = stage.record(nodes, [few]).replay
        times = race_ms(entrants, device, rounds=3)
    found = {name: median_ms(values) for name, values in times.items()}
    return {
        "copy_gbs": round(2 * 4 * numbers / found["copy"] / 1e6, 1),
        **{
            f"matmul_{name}_tflops": round(2 * side**3 / found[name] / 1e9, 1)
            for name in ("f32", "f16", "bf16")
        },
        "graph_node_us": round(found["graph"] / NODES * 1e3, 3),
    }


if __name__ == "__main__":
    main()
