"""Makes a graph's batch size free: dimensions that differ between two batch sizes are the batch."""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from ..errors import HeatError
from .nodes import Array

SIZES = (2, 3)
"""Batch sizes that are compared; the graph of a single image is simpler."""


def free_batch(two: onnx.ModelProto, three: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph of any batch size, made of those of batches of two and of three.

    Every Reshape must hold the batch in at most one of its sides, which becomes -1; no constant may
    hold it.
    """
    _refuse_constants(two, three)
    model = onnx.ModelProto()
    model.CopyFrom(two)
    graph = model.graph
    shapes: dict[tuple[int, ...], str] = {}
    for node, sides in _reshapes(model, three):
        free = np.flatnonzero(sides[0] != sides[1])
        if len(free) == 0:
            continue
        if len(free) > 1:
            raise HeatError(f"{node.name} holds the batch in {len(free)} of its sides")
        shape = sides[0].copy()
        shape[free[0]] = -1
        key = tuple(map(int, shape))
        if key not in shapes:
            shapes[key] = f"free{len(shapes)}"
            graph.initializer.append(numpy_helper.from_array(shape, shapes[key]))
        node.input[1] = shapes[key]
    for info in (*graph.input, *graph.output):
        info.type.tensor_type.shape.dim[0].dim_param = "batch"
    used = {name for node in graph.node for name in node.input}
    kept = [init for init in graph.initializer if init.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    onnx.checker.check_model(model)
    return model


def _refuse_constants(two: onnx.ModelProto, three: onnx.ModelProto) -> None:
    """Raise `HeatError` where a constant has the batch's size."""
    shapes = [{c.name: tuple(c.dims) for c in model.graph.initializer} for model in (two, three)]
    for pair in zip(two.graph.node, three.graph.node, strict=True):
        for names in zip(*(node.input for node in pair), strict=True):
            of_each = [known.get(name) for known, name in zip(shapes, names, strict=True)]
            if of_each[0] != of_each[1]:
                raise HeatError(f"{pair[0].name} has a constant of the batch's size")


def _reshapes(
    two: onnx.ModelProto, three: onnx.ModelProto
) -> Iterator[tuple[onnx.NodeProto, list[Array]]]:
    tables = [
        {init.name: init for init in model.graph.initializer if init.data_type == init.INT64}
        for model in (two, three)
    ]
    for pair in zip(two.graph.node, three.graph.node, strict=True):
        if pair[0].name != pair[1].name:
            raise HeatError(f"{pair[0].name} and {pair[1].name}: the graphs differ in structure")
        if pair[0].op_type == "Reshape":
            yield (
                pair[0],
                [
                    numpy_helper.to_array(table[node.input[1]])
                    for node, table in zip(pair, tables, strict=True)
                ],
            )
