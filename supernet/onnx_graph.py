"""Writes ONNX graphs node by node, in the deployed form of each operator.

The same writer makes the whole detector and every entry of a latency table, so what is timed is
what is deployed. There is no tracing: a node appears because an operator's `emit` asked for it.
Shapes are static and known while writing.

In precision int8 every convolution's input and weight pass through QuantizeLinear and
DequantizeLinear (symmetric, weights per output channel), which runtimes fuse into int8 kernels;
a `Rounding` says over which range, and which convolutions are left alone. In f16 and bf16 the
tensors themselves have that type, except where an operator asks for full precision: normalisation
of the image, norms of channel-wise attention, decoding.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from .errors import HeatError, UserError

Array = npt.NDArray[Any]

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

ACTIVATION_RANGE = 4.0
"""Largest activation of an int8 graph that was not calibrated: for timing only."""

Precision = Literal["f32", "f16", "bf16", "int8"]

_HALF = {
    "f16": (np.dtype(np.float16), TensorProto.FLOAT16),
    "bf16": (np.dtype(ml_dtypes.bfloat16), TensorProto.BFLOAT16),
}
"""Types of the tensors of half-precision graphs."""

_DTYPES = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int64": TensorProto.INT64}


class Rounding(Protocol):
    """How convolutions of an int8 graph are rounded, by their names, `place.path`."""

    def limit(self, name: str) -> float | None:
        """Return the magnitude of the input that becomes 127; None keeps floating point."""

    def output_limit(self, name: str) -> float | None:
        """Return the same of the output, for runtimes that fuse only what is rounded again."""

    @property
    def whole_bias(self) -> bool:
        """Whether biases are whole numbers too: ONNX Runtime needs it, TensorRT refuses it."""


@dataclass(frozen=True, slots=True)
class Uncalibrated:
    """The same range everywhere: for timing only."""

    outputs: bool = False
    """Whether outputs are rounded again."""

    def limit(self, name: str) -> float | None:
        """Return a range that means nothing."""
        return ACTIVATION_RANGE

    def output_limit(self, name: str) -> float | None:
        """Return it of the output, if that is rounded."""
        return ACTIVATION_RANGE if self.outputs else None

    @property
    def whole_bias(self) -> bool:
        """Round biases where outputs are rounded."""
        return self.outputs


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the graph: its name and its static shape (-1 where only the runtime knows)."""

    name: str
    shape: tuple[int, ...]


class GraphWriter:
    """Collects nodes and constants, then makes a checked `ModelProto`."""

    def __init__(
        self,
        name: str = "heat",
        precision: Precision = "f32",
        rounding: Rounding | None = None,
        opset: int | None = None,
        channels_last: bool = False,
        scatter_add: bool = True,
    ) -> None:
        """Start an empty graph; `rounding` is that of precision int8.

        Without `scatter_add` sums of scattered rows are matrix products, for TensorRT.
        Where maps become tokens, those of a `channels_last` graph keep their channels innermost,
        as runtimes that compute convolutions channels last have them in memory.
        """
        least, usual = (BF16_OPSET,) * 2 if precision == "bf16" else (OLDEST_OPSET, OPSET)
        self._opset = usual if opset is None else opset
        if not least <= self._opset <= max(IR_VERSIONS):
            raise UserError(f"--opset {opset}: {least} to {max(IR_VERSIONS)} for {precision}")
        self.channels_last, self.scatter_add = channels_last, scatter_add
        self._name = name
        self._precision = precision
        self._rounding = rounding or Uncalibrated()
        self._quantized: dict[tuple[str, float], Value] = {}
        self._in_full = not self.half
        self._full_names: set[str] = set()
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
        self._inputs.append(helper.make_tensor_value_info(name, _DTYPES[dtype], list(shape)))
        value = Value(name, tuple(shape))
        self._full_names.add(name)
        return self.working(value) if dtype == "float32" else value

    @property
    def half(self) -> bool:
        """Whether the graph's own precision is f16 or bf16."""
        return self._precision in _HALF

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
        if not self.half or x.name in self._full_names:
            return x
        with self.full_precision():
            return self.op("Cast", [x], x.shape, to=TensorProto.FLOAT)

    def working(self, x: Value) -> Value:
        """Append a Cast to the graph's precision where a float value is not of it."""
        if not self.half or x.name not in self._full_names:
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
        dh, dw = module.dilation
        batch, _, height, width = x.shape
        shape = (
            batch,
            module.out_channels,
            (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1,
            (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1,
        )
        self.macs[self._scope] += math.prod(shape) * module.weight[0].numel()
        name = str(getattr(module, "heat_name", ""))
        limit = self._rounding.limit(name) if self._precision == "int8" else None
        if limit is not None:
            inputs = self._int8_inputs(x, module, limit)
        else:
            inputs = [x, self.const(module.weight)]
            if module.bias is not None:
                inputs.append(self.const(module.bias))
        y = self.op(
            "Conv",
            inputs,
            shape,
            kernel_shape=[kh, kw],
            strides=[sh, sw],
            pads=[ph, pw, ph, pw],
            dilations=[dh, dw],
            group=module.groups,
        )
        output_limit = self._rounding.output_limit(name) if limit is not None else None
        return y if output_limit is None else self._fake_quantized(y, output_limit)

    def _int8_inputs(self, x: Value, conv: nn.Conv2d, limit: float) -> list[Value]:
        """Return a convolution's input, kernel and bias, rounded and dequantized.

        A whole bias has the scale of the products, so that integer kernels can add it.
        """
        kernel = conv.weight.detach().cpu().numpy()
        largest = np.abs(kernel).reshape(len(kernel), -1).max(1)
        scale = np.maximum(largest / 127, np.finfo(np.float32).tiny).astype(np.float32)
        whole = np.rint(kernel / scale.reshape(-1, 1, 1, 1)).astype(np.int8)
        inputs = [self._fake_quantized(x, limit), self._dequantized(whole, scale)]
        if conv.bias is not None and not self._rounding.whole_bias:
            inputs.append(self.const(conv.bias))
        elif conv.bias is not None:
            product = np.maximum(scale * np.float32(limit / 127), np.finfo(np.float32).tiny)
            bias = conv.bias.detach().cpu().numpy().astype(np.float64) / product
            edge = np.iinfo(np.int32)
            whole_bias = np.rint(np.clip(bias, edge.min, edge.max)).astype(np.int32)
            inputs.append(self._dequantized(whole_bias, product))
        return inputs

    def _dequantized(self, whole: Array, scale: Array) -> Value:
        """Store whole numbers with one scale for each output channel, and dequantize them."""
        zero = np.zeros(len(whole), dtype=whole.dtype)
        inputs = [self.const(whole), self.const(scale), self.const(zero)]
        return self.op("DequantizeLinear", inputs, whole.shape, axis=0)

    def _fake_quantized(self, x: Value, limit: float) -> Value:
        """Append QuantizeLinear, once a value and range, and DequantizeLinear.

        Every reader has a DequantizeLinear of its own: runtimes fuse none that is shared.
        """
        scale = self.scalar(limit / 127)
        zero = self.const(np.array(0, dtype=np.int8))
        key = (x.name, limit)
        if key not in self._quantized:
            self._quantized[key] = self.op("QuantizeLinear", [x, scale, zero], x.shape)
        return self.op("DequantizeLinear", [self._quantized[key], scale, zero], x.shape)

    def unary(self, kind: str, x: Value, **attrs: Any) -> Value:
        """Append an elementwise node of one input (Relu, Gelu, HardSwish, Sigmoid, ...)."""
        if kind == "HardSwish" and self._precision == "bf16":  # TensorRT has none in bfloat16
            x = self.full(x)
            with self.full_precision():
                y = self.op(kind, [x], x.shape, **attrs)
            return self.working(y)
        return self.op(kind, [x], x.shape, **attrs)

    def gelu(self, x: Value) -> Value:
        """Append the exact Gelu: one node, or before opset 20 x / 2 * (1 + erf(x / sqrt 2))."""
        if self._opset >= OPSET:
            return self.unary("Gelu", x)
        error = self.unary("Erf", self.binary("Mul", x, self.scalar(math.sqrt(0.5))))
        half = self.binary("Mul", x, self.scalar(0.5))
        return self.binary("Mul", half, self.add(error, self.scalar(1.0)))

    def norm_l2(self, x: Value, axis: int) -> Value:
        """Append the L2 norms over an axis, which stays."""
        shape = list(x.shape)
        shape[axis] = 1
        if self._opset >= 18:
            return self.op("ReduceL2", [x, self.ints(axis)], shape, keepdims=1)
        return self.op("ReduceL2", [x], shape, axes=[axis], keepdims=1)

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
        """Append a Split of one axis, unless there is one part."""
        if len(sizes) == 1:
            return [x]
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
        shape = (*batch, a.shape[-2], b.shape[-1])
        self.macs[self._scope] += math.prod(shape) * a.shape[-1]
        return self.op("MatMul", [a, b], shape)

    def linear(self, x: Value, module: nn.Linear) -> Value:
        """Append a product with a weight, and its bias."""
        y = self.matmul(x, self.const(module.weight.T.contiguous()))
        return y if module.bias is None else self.add(y, self.const(module.bias))

    def layer_norm(self, x: Value, module: nn.LayerNorm) -> Value:
        """Append a LayerNormalization of the last axis."""
        inputs = [x, self.const(module.weight), self.const(module.bias)]
        return self.op("LayerNormalization", inputs, x.shape, axis=-1, epsilon=module.eps)

    def swap(self, x: Value) -> Value:
        """Append a Transpose of the last two axes."""
        rank = len(x.shape)
        return self.transpose(x, *range(rank - 2), rank - 1, rank - 2)

    def pad_right_bottom(self, x: Value, height: int, width: int) -> Value:
        """Append a zero Pad of an NHWC map to the given size, if it is smaller."""
        batch, h, w, channels = x.shape
        if (h, w) == (height, width):
            return x
        pads = self.ints(0, 0, 0, 0, 0, height - h, width - w, 0)
        return self.op("Pad", [x, pads], (batch, height, width, channels))

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
        model = helper.make_model(
            graph,
            ir_version=IR_VERSIONS[self._opset],
            opset_imports=[helper.make_opsetid("", self._opset)],
            producer_name="heat",
        )
        if metadata:
            helper.set_model_props(model, metadata)
        onnx.checker.check_model(model)
        return model
