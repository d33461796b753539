"""Nodes, constants and inputs of an ONNX graph, each tensor with its static shape."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from .style import IR_VERSIONS, GraphStyle

Array = npt.NDArray[Any]

HALF_TYPES = {
    "f16": (np.dtype(np.float16), TensorProto.FLOAT16),
    "bf16": (np.dtype(ml_dtypes.bfloat16), TensorProto.BFLOAT16),
}
"""Types of the tensors of half-precision graphs."""

ELEMENT_TYPES = {
    "float32": TensorProto.FLOAT,
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
}


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the graph: its name and its static shape (-1 where only the runtime knows)."""

    name: str
    shape: tuple[int, ...]
    half: bool = False
    """Whether it is of the half precision of its graph."""


class NodeWriter:
    """Collects nodes and constants, then makes a checked `ModelProto`."""

    def __init__(self, style: GraphStyle | None = None, name: str = "heat") -> None:
        """Start an empty graph, in f32 and the default opset unless `style` is given."""
        self.style = style or GraphStyle()
        self._name = name
        self._in_full = not self.half
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Value] = {}
        self._initializers: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._scope = ""
        self.macs: Counter[str] = Counter()
        """Multiply-adds of convolutions and matrix products so far, by scope."""

    def scope(self, name: str) -> None:
        """Prefix the names of the nodes that follow, so that profiles can be read."""
        self._scope = f"{name}/" if name else ""

    def input(self, name: str, shape: Sequence[int], dtype: str = "float32") -> Value:
        """Declare a graph input."""
        self._inputs.append(helper.make_tensor_value_info(name, ELEMENT_TYPES[dtype], list(shape)))
        value = Value(name, tuple(shape))
        return self.working(value) if dtype == "float32" else value

    @property
    def half(self) -> bool:
        """Whether the graph's own precision is f16 or bf16."""
        return self.style.precision in HALF_TYPES

    @contextmanager
    def full_precision(self) -> Iterator[None]:
        """Let constants and results in this block be float32, whatever the graph's precision."""
        before, self._in_full = self._in_full, True
        yield
        self._in_full = before

    @contextmanager
    def own_precision(self) -> Iterator[None]:
        """Let constants and results in this block be of the graph's precision again."""
        before, self._in_full = self._in_full, not self.half
        yield
        self._in_full = before

    def full(self, x: Value) -> Value:
        """Append a Cast to float32 where a value is not."""
        if not x.half:
            return x
        with self.full_precision():
            return self.op("Cast", [x], x.shape, to=TensorProto.FLOAT)

    def working(self, x: Value) -> Value:
        """Append a Cast to the graph's precision where a float value is not of it."""
        if not self.half or x.half:
            return x
        before, self._in_full = self._in_full, False
        y = self.op("Cast", [x], x.shape, to=HALF_TYPES[self.style.precision][1])
        self._in_full = before
        return y

    def const(self, array: Array | Tensor) -> Value:
        """Store a constant; equal constants are stored once."""
        if isinstance(array, Tensor):
            array = array.detach().cpu().numpy()
        array = np.asarray(array, order="C")
        if array.dtype == np.float32 and not self._in_full:
            array = array.astype(HALF_TYPES[self.style.precision][0])
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            name = f"c{len(self._constants)}"
            self._initializers.append(numpy_helper.from_array(array, name))
            half = self.half and array.dtype == HALF_TYPES[self.style.precision][0]
            self._constants[key] = Value(name, array.shape, half)
        return self._constants[key]

    def ints(self, *values: int) -> Value:
        """Store a 1-D int64 constant."""
        return self.const(np.array(values, dtype=np.int64))

    def scalar(self, value: float) -> Value:
        """Store a float32 constant of shape ()."""
        return self.const(np.array(value, dtype=np.float32))

    def op(self, kind: str, inputs: Sequence[Value], shape: Sequence[int], **attrs: Any) -> Value:
        """Append a node with one output of the given shape."""
        return self.op_many(kind, inputs, [shape], **attrs)[0]

    def op_many(
        self, kind: str, inputs: Sequence[Value], shapes: Sequence[Sequence[int]], **attrs: Any
    ) -> list[Value]:
        """Append a node with one output for each shape."""
        label = f"{self._scope}{kind}_{len(self._nodes)}"
        half = not self._in_full
        outputs = [Value(f"{label}.{index}", tuple(s), half) for index, s in enumerate(shapes)]
        names = [value.name for value in inputs]
        self._nodes.append(
            helper.make_node(kind, names, [value.name for value in outputs], name=label, **attrs)
        )
        return outputs

    def model(
        self, outputs: Sequence[tuple[str, Value, str]], metadata: dict[str, str] | None = None
    ) -> onnx.ModelProto:
        """Make the model; `outputs` are (public name, value, dtype)."""
        infos = []
        for name, result, dtype in outputs:
            value = self.full(result) if dtype == "float32" else result
            self._nodes.append(helper.make_node("Identity", [value.name], [name], name=name))
            shape = [side if side >= 0 else "detections" for side in value.shape]
            infos.append(helper.make_tensor_value_info(name, ELEMENT_TYPES[dtype], shape))
        graph = helper.make_graph(self._nodes, self._name, self._inputs, infos, self._initializers)
        model = helper.make_model(
            graph,
            ir_version=IR_VERSIONS[self.style.version],
            opset_imports=[helper.make_opsetid("", self.style.version)],
            producer_name="heat",
        )
        if metadata:
            helper.set_model_props(model, metadata)
        onnx.checker.check_model(model)
        return model
