"""How a graph is written: for which runtime, in which precision, in which opset."""

from dataclasses import dataclass, field
from typing import Literal, Protocol, Self, cast

from ..errors import UserError

OPSET = 20
"""First opset with Gelu as one node."""
OLDEST_OPSET = 17
"""Runtimes that do not know opset 20 get Gelu as five nodes."""
BF16_OPSET = 22
"""First opset whose convolutions take bfloat16."""
IR_VERSIONS = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10}
"""Oldest IR that carries an opset, so that older runtimes load the file."""

FORMS_VERSION = 3
"""Raised whenever an operator's deployed nodes change: latencies measured before are then stale."""

QUANTIZES_OUTPUTS = frozenset({"onnxruntime"})
"""Runtimes that compute a convolution in INT8 only where its output is quantized again."""

CHANNELS_LAST = frozenset({"openvino"})
"""Runtimes that are faster where tokens keep their channels innermost; ONNX Runtime is slower."""

NO_SCATTER_ADD = frozenset({"tensorrt"})
"""Runtimes that cannot add up scattered rows."""

ACTIVATION_RANGE = 4.0
"""Largest activation of an int8 graph that was not calibrated: for timing only."""

Precision = Literal["f32", "f16", "bf16", "int8"]


class Ranges(Protocol):
    """How convolutions of an int8 graph are quantized, by their names, `place.path`."""

    def limit(self, name: str) -> float | None:
        """Return the magnitude of the input that becomes 127; None keeps floating point."""

    def output_limit(self, name: str) -> float | None:
        """Return the same of the output, for runtimes that fuse only what is quantized again."""

    @property
    def integer_bias(self) -> bool:
        """Whether biases are integers too: ONNX Runtime needs it, TensorRT refuses it."""


@dataclass(frozen=True, slots=True)
class Uncalibrated:
    """The same range everywhere: for timing only."""

    outputs: bool = False
    """Whether outputs are quantized again."""

    def limit(self, name: str) -> float | None:
        """Return the same range for every convolution."""
        return ACTIVATION_RANGE

    def output_limit(self, name: str) -> float | None:
        """Return the same range, if outputs are quantized."""
        return ACTIVATION_RANGE if self.outputs else None

    @property
    def integer_bias(self) -> bool:
        """Whether biases are quantized: where outputs are."""
        return self.outputs


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphStyle:
    """How a graph is written; `of` returns the style for a runtime."""

    precision: Precision = "f32"
    ranges: Ranges = field(default_factory=Uncalibrated)
    """How an int8 graph is quantized."""
    opset: int | None = None
    """ONNX opset; the usual one of the precision by default."""
    channels_last: bool = False
    """Whether tokens keep their channels innermost, as maps are in memory in runtimes that compute
    convolutions channels last."""
    scatter_add: bool = True
    """Whether the runtime adds up scattered rows; else these sums are matrix products."""

    def __post_init__(self) -> None:
        """Refuse an opset that the precision does not have."""
        least = BF16_OPSET if self.precision == "bf16" else OLDEST_OPSET
        if not least <= self.version <= max(IR_VERSIONS):
            raise UserError(
                f"--opset {self.opset}: {least} to {max(IR_VERSIONS)} for {self.precision}"
            )

    @classmethod
    def of(
        cls,
        runtime: str,
        precision: str = "f32",
        ranges: Ranges | None = None,
        opset: int | None = None,
    ) -> Self:
        """Return the style for a runtime; without ranges an int8 graph is for timing only."""
        return cls(
            precision=cast(Precision, precision),
            ranges=ranges or Uncalibrated(outputs=runtime in QUANTIZES_OUTPUTS),
            opset=opset,
            channels_last=runtime in CHANNELS_LAST,
            scatter_add=runtime not in NO_SCATTER_ADD,
        )

    @property
    def version(self) -> int:
        """The opset."""
        usual = BF16_OPSET if self.precision == "bf16" else OPSET
        return usual if self.opset is None else self.opset
