"""Clusters in exported graphs: static shapes, from operators that every runtime has.

TopK, neighbour inequality and CumSum rank the distinct hash keys; ScatterElements sums members;
GatherElements copies. Keys are float32 in every precision: float16 cannot represent them.
ONNX's `Unique` would have shapes that depend on values, which TensorRT does not support.

Shape suffixes: G groups, N vectors, E their width, C clusters.
"""

import numpy as np
from onnx import TensorProto

from ..graph.nodes import Value
from ..graph.writer import GraphWriter
from .hashing import CODES, Hash


def emit_index(graph: GraphWriter, hash_: Hash, x: Value, most: int) -> Value:
    """Write the cluster of every vector [G, N, E] as int64 [G, N], below `most`."""
    G, N, _ = x.shape
    if N == 1:
        return graph.const(np.zeros((G, 1), dtype=np.int64))
    with graph.full_precision():
        dots = graph.matmul(graph.full(x), graph.const(hash_.directions_LE.T.contiguous()))
        shifted = graph.add(dots, graph.const(hash_.offsets_L))
        codes = graph.unary("Floor", graph.binary("Div", shifted, graph.scalar(hash_.bucket)))
        wraps = graph.unary("Floor", graph.binary("Mul", codes, graph.scalar(1 / CODES)))
        wrapped = graph.binary("Sub", codes, graph.binary("Mul", wraps, graph.scalar(CODES)))
        keys = graph.reshape(
            graph.matmul(wrapped, graph.const(hash_.weights_L[:, None].contiguous())), G, N
        )
        ordered, order = graph.op_many("TopK", [keys, graph.ints(N)], [(G, N)] * 2, axis=1)
        before, after = graph.slice(ordered, 1, 0, N - 1), graph.slice(ordered, 1, 1, N)
        starts = graph.op("Greater", [before, after], (G, N - 1))
        starts = graph.op("Cast", [starts], (G, N - 1), to=TensorProto.INT32)
        rank = graph.op("CumSum", [starts, graph.const(np.array(1))], (G, N - 1))
        first = graph.const(np.zeros((G, 1), dtype=np.int32))
        rank = graph.concat([first, rank], 1)
        if most < N:
            bound = graph.const(np.array(most, dtype=np.int32))
            last = graph.slice(rank, 1, N - 1, N)
            count = graph.add(last, graph.const(np.array(1, dtype=np.int32)))
            divisor = graph.binary("Max", count, bound)
            rank = graph.binary("Div", graph.binary("Mul", rank, bound), divisor)
        rank = graph.op("Cast", [rank], (G, N), to=TensorProto.INT64)
        empty = graph.const(np.zeros((G, N), dtype=np.int64))
        return graph.op("ScatterElements", [empty, order, rank], (G, N), axis=1)


def emit_means(graph: GraphWriter, x: Value, index: Value, most: int) -> tuple[Value, Value]:
    """Write the mean of every cluster [G, C, E], and its number of members [G, C, 1] in float32."""
    G, N, E = x.shape
    with graph.full_precision():
        one = graph.const(np.ones((G, N, 1), dtype=np.float32))
        counted = graph.concat([graph.full(x), one], 2)
        if graph.scatter_add:
            wide = _widened(graph, index, E + 1)
            empty = graph.const(np.zeros((G, most, E + 1), dtype=np.float32))
            sums = graph.op(
                "ScatterElements", [empty, wide, counted], (G, most, E + 1), axis=1, reduction="add"
            )
        else:
            sums = graph.matmul(_one_hot(graph, index, most), counted)
        total, members = graph.split(sums, 2, (E, 1))
        mean = graph.binary("Div", total, graph.binary("Max", members, graph.scalar(1.0)))
    return graph.working(mean), members


def _one_hot(graph: GraphWriter, index: Value, most: int) -> Value:
    """Write which vectors are members of which cluster, [G, C, N], as 0 and 1."""
    G, N = index.shape
    rows = graph.const(np.arange(most, dtype=np.int64).reshape(1, most, 1))
    same = graph.op("Equal", [rows, graph.reshape(index, G, 1, N)], (G, most, N))
    return graph.op("Cast", [same], (G, most, N), to=TensorProto.FLOAT)


def emit_copies(graph: GraphWriter, read: Value, index: Value) -> Value:
    """Write the results of clusters, [G, C, E], for their members, [G, N, E]."""
    G, N = index.shape
    E = read.shape[2]
    wide = _widened(graph, index, E)
    return graph.op("GatherElements", [read, wide], (G, N, E), axis=1)


def _widened(graph: GraphWriter, index: Value, width: int) -> Value:
    G, N = index.shape
    column = graph.reshape(index, G, N, 1)
    return graph.op("Expand", [column, graph.ints(1, 1, width)], (G, N, width))
