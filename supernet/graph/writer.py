"""Writes the layers of a deployed network as ONNX nodes.

The same writer makes the whole detector and every entry of a latency table, so what is timed is
what is deployed. There is no tracing: an operator's `emit` appends every node.
Shapes are static and known while writing.

In precision int8 every convolution's input and weight pass through QuantizeLinear and
DequantizeLinear (symmetric, weights per output channel), which runtimes fuse into int8 kernels;
the style's `Ranges` give the ranges, and which convolutions stay in floating point. In f16 and bf16
the tensors themselves have that type, except where an operator asks for full precision:
normalisation of the image, norms of channel-wise attention, decoding.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from ..errors import HeatError
from .nodes import Array, NodeWriter, Value
from .style import OPSET, GraphStyle


class GraphWriter(NodeWriter):
    """Appends layers to a graph."""

    def __init__(self, style: GraphStyle | None = None, name: str = "heat") -> None:
        """Start an empty graph, in f32 and the default opset unless `style` is given."""
        super().__init__(style, name)
        self._quantized: dict[tuple[str, float], Value] = {}

    @property
    def channels_last(self) -> bool:
        """Whether tokens keep their channels innermost."""
        return self.style.channels_last

    @property
    def scatter_add(self) -> bool:
        """Whether sums of scattered rows are one node."""
        return self.style.scatter_add

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
        limit = self.style.ranges.limit(name) if self.style.precision == "int8" else None
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
        output_limit = self.style.ranges.output_limit(name) if limit is not None else None
        if output_limit is None:
            return y
        return self._fake_quantized(y, output_limit * float(getattr(module, "heat_factor", 1.0)))

    def _int8_inputs(self, x: Value, conv: nn.Conv2d, limit: float) -> list[Value]:
        """Return a convolution's input, kernel and bias, quantized and dequantized.

        An integer bias has the scale of the products, so that integer kernels can add it.
        """
        kernel = conv.weight.detach().cpu().numpy()
        largest = np.abs(kernel).reshape(len(kernel), -1).max(1)
        scale = np.maximum(largest / 127, np.finfo(np.float32).tiny).astype(np.float32)
        whole = np.rint(kernel / scale.reshape(-1, 1, 1, 1)).astype(np.int8)
        inputs = [self._fake_quantized(x, limit), self._dequantized(whole, scale)]
        if conv.bias is not None and not self.style.ranges.integer_bias:
            inputs.append(self.const(conv.bias))
        elif conv.bias is not None:
            product = np.maximum(scale * np.float32(limit / 127), np.finfo(np.float32).tiny)
            bias = conv.bias.detach().cpu().numpy().astype(np.float64) / product
            edge = np.iinfo(np.int32)
            integer_bias = np.rint(np.clip(bias, edge.min, edge.max)).astype(np.int32)
            inputs.append(self._dequantized(integer_bias, product))
        return inputs

    def _dequantized(self, whole: Array, scale: Array) -> Value:
        """Store whole numbers with one scale for each output channel, and dequantize them."""
        zero = np.zeros(len(whole), dtype=whole.dtype)
        inputs = [self.const(whole), self.const(scale), self.const(zero)]
        return self.op("DequantizeLinear", inputs, whole.shape, axis=0)

    def _fake_quantized(self, x: Value, limit: float) -> Value:
        """Append QuantizeLinear, once for each value and range, and DequantizeLinear.

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
        if kind == "HardSwish" and self.style.precision == "bf16":  # TensorRT has none in bfloat16
            x = self.full(x)
            with self.full_precision():
                y = self.op(kind, [x], x.shape, **attrs)
            return self.working(y)
        return self.op(kind, [x], x.shape, **attrs)

    def gelu(self, x: Value) -> Value:
        """Append the exact Gelu: one node, or before opset 20 x / 2 * (1 + erf(x / sqrt 2))."""
        if self.style.version >= OPSET:
            return self.unary("Gelu", x)
        error = self.unary("Erf", self.binary("Mul", x, self.scalar(math.sqrt(0.5))))
        half = self.binary("Mul", x, self.scalar(0.5))
        return self.binary("Mul", half, self.add(error, self.scalar(1.0)))

    def norm_l2(self, x: Value, axis: int) -> Value:
        """Append the L2 norms over an axis, which stays."""
        shape = list(x.shape)
        shape[axis] = 1
        if self.style.version >= 18:
            return self.op("ReduceL2", [x, self.ints(axis)], shape, keepdims=1)
        return self.op("ReduceL2", [x], shape, axes=[axis], keepdims=1)

    def binary(self, kind: str, a: Value, b: Value) -> Value:
        """Append an elementwise node of two inputs with broadcasting (Add, Mul, ...).

        Sides that are not known, -1, broadcast as all others do.
        """
        unknown = 1 << 40
        known = ([unknown if side == -1 else side for side in x.shape] for x in (a, b))
        shape = np.broadcast_shapes(*map(tuple, known))
        return self.op(kind, [a, b], [-1 if side == unknown else side for side in shape])

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
