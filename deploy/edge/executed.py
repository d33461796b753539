"""Reads back the precision that a runtime executes.

Needs numpy and the runtime only: every probe carries this file's text.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from supernet.errors import UserError

from .runtimes import OnnxRuntimeSession, OpenVinoSession
from .session import Feeds

HEAVY = ("conv", "matmul", "gemm", "fullyconnected")
"""Parts of node names that do the multiply-adds."""

EXECUTED_NAMES = {
    "f32": "f32", "float": "f32", "float32": "f32",
    "f16": "f16", "float16": "f16",
    "bf16": "bf16", "bfloat16": "bf16",
    "u8": "int8", "i8": "int8", "uint8": "int8", "int8": "int8",
}  # fmt: skip
"""What runtimes call their precisions."""


def executed_precision(
    runtime: str, model: bytes | Path, threads: int, precision: str, feeds: Feeds
) -> dict[str, int]:
    """Run a model once and return how many heavy nodes the runtime executed in each precision.

    Read back from OpenVINO's compiled graph and from ONNX Runtime's profile: a precision that was
    asked for need not be the one that is used.
    """
    if runtime == "openvino":
        with OpenVinoSession(model, threads, precision) as session:
            return _openvino_precisions(session)
    if runtime == "onnxruntime":
        return _onnxruntime_precisions(model, threads, feeds)
    raise UserError(f"the executed precision of {runtime} cannot be read back")


def dominant(precisions: Mapping[str, int]) -> str:
    """Return the precision of most heavy nodes."""
    return max(precisions, key=lambda name: precisions[name], default="unknown")


def _openvino_precisions(session: OpenVinoSession) -> dict[str, int]:
    found: Counter[str] = Counter()
    for node in session.compiled.get_runtime_model().get_ops():
        facts = node.get_rt_info()
        if "layerType" in facts and "runtimePrecision" in facts:
            kind, precision = facts["layerType"].astype(str), facts["runtimePrecision"].astype(str)
            if any(part in kind.lower() for part in HEAVY) and "convert" not in kind.lower():
                found[EXECUTED_NAMES.get(precision, precision)] += 1
    return dict(found)


def _onnxruntime_precisions(model: bytes | Path, threads: int, feeds: Feeds) -> dict[str, int]:
    with (
        tempfile.TemporaryDirectory() as folder,
        OnnxRuntimeSession(model, threads, profile=str(Path(folder) / "run")) as session,
    ):
        session.run(feeds)
        return profiled_precisions(Path(session.session.end_profiling()))


def profiled_precisions(profile: Path, provider: str = "CPUExecutionProvider") -> dict[str, int]:
    """Count the heavy nodes of an ONNX Runtime profile by precision of their first input.

    Nodes that another provider executed are counted separately.
    """
    found: Counter[str] = Counter()
    for event in json.loads(profile.read_text(encoding="utf-8")):
        facts = event.get("args", {})
        kind, inputs = facts.get("op_name", "").lower(), facts.get("input_type_shape")
        if inputs and any(part in kind for part in HEAVY):
            precision = next(iter(inputs[0]))
            name = EXECUTED_NAMES.get(precision, precision)
            other = facts.get("provider", provider)
            found[name if other == provider else f"{name} by {other}"] += 1
    return dict(found)
