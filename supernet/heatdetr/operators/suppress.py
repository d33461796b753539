"""Greedy suppression (NMS): `nms` in torch, `survivors` inside an exported graph.

`survivors` is made of products of matrices, without a loop or a shape that depends on values: the
result of NMS for runtimes that have none (TensorRT for RTX) and for batches.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...boxes import iou_matrix
from ...graph.nodes import Value
from ...graph.writer import GraphWriter

ROUNDS = 20
"""Longest chain of boxes, each overlapping the next, that is settled exactly."""


def nms(boxes_xyxy: Tensor, iou_threshold: float, keep: int) -> Tensor:
    """Greedy suppression of boxes given best first; returns the kept row indices."""
    overlaps = (iou_matrix(boxes_xyxy, boxes_xyxy) > iou_threshold).cpu().numpy()
    alive = np.ones(len(overlaps), dtype=bool)
    kept: list[int] = []
    for row in range(len(overlaps)):
        if alive[row]:
            kept.append(row)
            if len(kept) == keep:
                break
            alive &= ~overlaps[row]
    return torch.tensor(kept, dtype=torch.int64, device=boxes_xyxy.device)


def survivors(
    graph: GraphWriter, best: Value, corners: Sequence[Value], *, iou: float, threshold: float
) -> Value:
    """Return 1 where a box survives, else 0, [B, n].

    `best` are scores [B, n], best first, `corners` x0, y0, x1, y1, [B, n] each.

    A box is suppressed where a better survivor overlaps it too much. Starting from all, every round
    settles the boxes one step further down such chains; the rounds are enough for chains as
    long as `ROUNDS`, and what is then not settled is kept.
    """
    B, n = best.shape
    x0, y0, x1, y1 = corners

    def pairs(kind: str, a: Value, b: Value) -> Value:
        return graph.binary(kind, graph.reshape(a, B, n, 1), graph.reshape(b, B, 1, n))

    def extent(low: Value, high: Value) -> Value:
        length = graph.binary("Sub", pairs("Min", high, high), pairs("Max", low, low))
        return graph.unary("Relu", length)

    common = graph.binary("Mul", extent(x0, x1), extent(y0, y1))
    sides = graph.binary("Sub", x1, x0), graph.binary("Sub", y1, y0)
    areas = graph.binary("Mul", *sides)
    union = graph.binary("Sub", pairs("Add", areas, areas), common)
    most = graph.binary("Mul", union, graph.scalar(iou))
    order = np.arange(n)
    better = graph.const((order[:, None] < order[None]).astype(np.float32)[None])
    falls = graph.binary("Mul", as_float(graph, graph.binary("Greater", common, most)), better)
    candidates = graph.reshape(
        as_float(graph, graph.binary("Greater", best, graph.scalar(threshold))), B, 1, n
    )
    falls, alive = graph.working(falls), candidates
    for _ in range(ROUNDS):
        with graph.own_precision():  # ones and zeros are exact in every precision
            better_ones = graph.matmul(graph.working(alive), falls)
        free = graph.binary("Less", graph.full(better_ones), graph.scalar(0.5))
        alive = graph.binary("Mul", candidates, as_float(graph, free))
    return graph.reshape(alive, B, n)


def as_float(graph: GraphWriter, x: Value) -> Value:
    """Append a Cast to float32."""
    return graph.op("Cast", [x], x.shape, to=1)
