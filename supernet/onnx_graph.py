"""Writes ONNX graphs node by node, in the deployed form of each operator.

The same writer makes the whole detector and every entry of a latency table, so what is timed is
what is deployed. There is no tracing: a node appears because an operator's `emit` asked for it.
Shapes are static and known while writing.

In precision int8 every convolution's input and weight pass through QuantizeLinear and
DequantizeLinear (symmetric, weights per output channel), which runtimes fuse into int8 kernels. In
f16 and bf16 the tensors themselves have that type, except where an operator asks for full
precision: normalisation of the image, norms of channel-wise attention, decoding.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from .errors import HeatError

Array = npt.NDArray[Any]

OPSET = 20
"""First opset with Gelu as one node."""
IR_VERSION = 9
"""Oldest IR that carries opset 20, so that older runtimes load the file."""
BF16_OPSET, BF16_IR_VERSION = 22, 10
"""First opset whose convolutions take bfloat16."""

FORMS_VERSION = 1
"""Raised whenever an operator's deployed nodes change: latencies measured before are then stale."""

ACTIVATION_RANGE = 4.0
"""Largest activation of an int8 graph where no calibration says otherwise."""

Precision = Literal["f32", "f16", "bf16", "int8"]

_HALF = {
    "f16": (np.dtype(np.float16), TensorProto.FLOAT16),
    "bf16": (np.dtype(ml_dtypes.bfloat16), TensorProto.BFLOAT16),
}
"""Types of the tensors of half-precision graphs."""

_DTYPES = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int64": TensorProto.INT64}


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the graph: its name and its static shape (-1 where only the runtime knows)."""

    name: str
    shape: tuple[int, ...]


class GraphWriter:
    """Collects nodes and constants, then makes a checked `ModelProto`."""

    def __init__(self, name: str = "heat", precision: Precision = "f32") -> None:
        """Start an empty graph."""
        self._name = name
        self._precision = precision
        self._quantized: dict[str, Value] = {}
        self._in_full = precision not in _HALF
        self._full_names: set[str] = set()
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Value] = {}
        self._initializers: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._scope = ""

    def scope(self, name: str) -> None:
        """Prefix the names of the nodes that follow, so that profiles can be read."""
        self._scope = f"{name}/" if name else ""

    def input(self, name: str, shape: Sequence[int], dtype: str = "float32") -> Value:
        """Declare a graph input."""
        self._inputs.append(helper.make_tensor_value_info(name, _DTYPES[dtype], list(shape)))
        value = Value(name, tuple(shape))
        self._full_names.add(name)
        return self.working(value) if dtype == "float32" else value

    @contextmanager
    def full_precision(self) -> Iterator[None]:
        """Let constants and results in this block be float32, whatever the graph's precision."""
        before, self._in_full = self._in_full, True
        yield
        self._in_full = before

    def full(self, x: Value) -> Value:
        """Append a Cast to float32 where a value is not."""
        if self._precision not in _HALF or x.name in self._full_names:
            return x
        with self.full_precision():
            return self.op("Cast", [x], x.shape, to=TensorProto.FLOAT)

    def working(self, x: Value) -> Value:
        """Append a Cast to the graph's precision where a float value is not of it."""
        if self._precision not in _HALF or x.name not in self._full_names:
            return x
        before, self._in_full = self._in_full, False
        y = self.op("Cast", [x], x.shape, to=_HALF[self._precision][1])
        self._in_full = before
        return y

    def const(self, array: Array | Tensor) -> Value:
        """Store a constant; equal constants are stored once."""
        if isinstance(array, Tensor):
            array = array.detach().cpu().numpy()
        array = np.asarray(array, order="C")
        if array.dtype == np.float32 and not self._in_full:
            array = array.astype(_HALF[self._precision][0])
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            name = f"c{len(self._constants)}"
            self._initializers.append(numpy_helper.from_array(array, name))
            self._constants[key] = Value(name, array.shape)
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
        outputs = [Value(f"{label}.{index}", tuple(s)) for index, s in enumerate(shapes)]
        names = [value.name for value in inputs]
        if self._in_full:
            self._full_names.update(value.name for value in outputs)
        self._nodes.append(
            helper.make_node(kind, names, [value.name for value in outputs], name=label, **attrs)
        )
        return outputs

    def conv(self, x: Value, module: nn.Module) -> Value:
        """Append a folded convolution."""
        if not isinstance(module, nn.Conv2d) or isinstance(module.padding, str):
            raise HeatError(f"{type(module).__name__} is not a folded convolution: fold() first")
        (kh, kw), (sh, sw), (ph, pw) = module.kernel_size, module.stride, module.padding
        batch, _, height, width = x.shape
        shape = (
            batch,
            module.out_channels,
            (height + 2 * ph - kh) // sh + 1,
            (width + 2 * pw - kw) // sw + 1,
        )
        if self._precision == "int8":
            inputs = [self._fake_quantized(x), self._int8_weight(module.weight)]
        else:
            inputs = [x, self.const(module.weight)]
        if module.bias is not None:
            inputs.append(self.const(module.bias))
        return self.op(
            "Conv",
            inputs,
            shape,
            kernel_shape=[kh, kw],
            strides=[sh, sw],
            pads=[ph, pw, ph, pw],
            group=module.groups,
        )

    def _fake_quantized(self, x: Value) -> Value:
        """Append QuantizeLinear and DequantizeLinear behind a value, once a value."""
        if x.name not in self._quantized:
            scale = self.scalar(ACTIVATION_RANGE / 127)
            zero = self.const(np.array(0, dtype=np.int8))
            whole = self.op("QuantizeLinear", [x, scale, zero], x.shape)
            self._quantized[x.name] = self.op("DequantizeLinear", [whole, scale, zero], x.shape)
        return self._quantized[x.name]

    def _int8_weight(self, weight: Tensor) -> Value:
        """Store a kernel as int8 with one scale for each output channel, and dequantize it."""
        kernel = weight.detach().cpu().numpy()
        largest = np.abs(kernel).reshape(len(kernel), -1).max(1)
        scale = np.maximum(largest / 127, np.finfo(np.float32).tiny).astype(np.float32)
        whole = np.rint(kernel / scale.reshape(-1, 1, 1, 1)).astype(np.int8)
        zero = np.zeros(len(kernel), dtype=np.int8)
        inputs = [self.const(whole), self.const(scale), self.const(zero)]
        return self.op("DequantizeLinear", inputs, kernel.shape, axis=0)

    def unary(self, kind: str, x: Value, **attrs: Any) -> Value:
        """Append an elementwise node of one input (Relu, Gelu, HardSwish, Sigmoid, ...)."""
        if kind == "HardSwish" and self._precision == "bf16":  # TensorRT has none in bfloat16
            x = self.full(x)
            with self.full_precision():
                y = self.op(kind, [x], x.shape, **attrs)
            return self.working(y)
        return self.op(kind, [x], x.shape, **attrs)

    def binary(self, kind: str, a: Value, b: Value) -> Value:
        """Append an elementwise node of two inputs with broadcasting (Add, Mul, ...)."""
        return self.op(kind, [a, b], np.broadcast_shapes(a.shape, b.shape))

    def add(self, a: Value, b: Value) -> Value:
        """Append a sum."""
        return self.binary("Add", a, b)

    def reshape(self, x: Value, *shape: int) -> Value:
        """Append a Reshape to a fully given shape."""
        return self.op("Reshape", [x, self.ints(*shape)], shape)

    def transpose(self, x: Value, *perm: int) -> Value:
        """Append a Transpose."""
        return self.op("Transpose", [x], [x.shape[axis] for axis in perm], perm=list(perm))

    def slice(self, x: Value, axis: int, start: int, end: int) -> Value:
        """Append a Slice of one axis."""
        shape = list(x.shape)
        shape[axis] = end - start
        bounds = [self.ints(start), self.ints(end), self.ints(axis)]
        return self.op("Slice", [x, *bounds], shape)

    def split(self, x: Value, axis: int, sizes: Sequence[int]) -> list[Value]:
        """Append a Split of one axis."""
        shapes = [(*x.shape[:axis], size, *x.shape[axis + 1 :]) for size in sizes]
        return self.op_many("Split", [x, self.ints(*sizes)], shapes, axis=axis)

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        """Append a Concat."""
        shape = list(values[0].shape)
        shape[axis] = sum(value.shape[axis] for value in values)
        return self.op("Concat", list(values), shape, axis=axis)

    def matmul(self, a: Value, b: Value) -> Value:
        """Append a batched matrix product."""
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        return self.op("MatMul", [a, b], (*batch, a.shape[-2], b.shape[-1]))

    def swap(self, x: Value) -> Value:
        """Append a Transpose of the last two axes."""
        rank = len(x.shape)
        return self.transpose(x, *range(rank - 2), rank - 1, rank - 2)

    def pad_right_bottom(self, x: Value, height: int, width: int) -> Value:
        """Append a zero Pad of an NCHW map to the given size, if it is smaller."""
        batch, channels, h, w = x.shape
        if (h, w) == (height, width):
            return x
        pads = self.ints(0, 0, 0, 0, 0, 0, height - h, width - w)
        return self.op("Pad", [x, pads], (batch, channels, height, width))

    def roll(self, x: Value, axis: int, by: int) -> Value:
        """Append what `torch.roll(x, by, axis)` does: two slices and a Concat."""
        size = x.shape[axis]
        cut = (-by) % size
        return self.concat([self.slice(x, axis, cut, size), self.slice(x, axis, 0, cut)], axis)

    def avgpool(self, x: Value) -> Value:
        """Append a 2x2 mean pool of stride 2, ceil mode, padding not counted."""
        batch, channels, h, w = x.shape
        return self.op(
            "AveragePool",
            [x],
            (batch, channels, math.ceil(h / 2), math.ceil(w / 2)),
            kernel_shape=[2, 2],
            strides=[2, 2],
            ceil_mode=h % 2 or w % 2,
            count_include_pad=0,
        )

    def upsample_to(self, x: Value, like: Value) -> Value:
        """Append a nearest upsampling by 2, cropped to the size of `like`."""
        batch, channels, h, w = x.shape
        with self.full_precision():
            scales = self.const(np.array([1, 1, 2, 2], dtype=np.float32))
        none = Value("", ())
        shape = (batch, channels, 2 * h, 2 * w)
        up = self.op(
            "Resize",
            [x, none, scales],
            shape,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        for axis in (2, 3):
            if up.shape[axis] != like.shape[axis]:
                up = self.slice(up, axis, 0, like.shape[axis])
        return up

    def model(
        self, outputs: Sequence[tuple[str, Value, str]], metadata: dict[str, str] | None = None
    ) -> onnx.ModelProto:
        """Make the model; `outputs` are (public name, value, dtype)."""
        infos = []
        for name, result, dtype in outputs:
            value = self.full(result) if dtype == "float32" else result
            self._nodes.append(helper.make_node("Identity", [value.name], [name], name=name))
            shape = [side if side >= 0 else "detections" for side in value.shape]
            infos.append(helper.make_tensor_value_info(name, _DTYPES[dtype], shape))
        graph = helper.make_graph(self._nodes, self._name, self._inputs, infos, self._initializers)
        bf16 = self._precision == "bf16"
        model = helper.make_model(
            graph,
            ir_version=BF16_IR_VERSION if bf16 else IR_VERSION,
            opset_imports=[helper.make_opsetid("", BF16_OPSET if bf16 else OPSET)],
            producer_name="heat",
        )
        if metadata:
            helper.set_model_props(model, metadata)
        onnx.checker.check_model(model)
        return model
