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

    sides = graph.binary("Sub", x1, x0), graph.binary("Sub", y1, y0)
    areas = graph.binary("Mul", *sides)
    common, union = emit_overlaps(
        graph,
        [graph.reshape(x, B, n, 1) for x in (*corners, areas)],
        [graph.reshape(x, B, 1, n) for x in (*corners, areas)],
    )
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


def emit_overlaps(
    graph: GraphWriter, own: Sequence[Value], others: Sequence[Value]
) -> tuple[Value, Value]:
    """Append intersection and union of all pairs of boxes, in square pixels, [..., n, m].

    Boxes are x0, y0, x1, y1 and areas, [..., n, 1] each, and [..., 1, m] each.
    """

    def extent(low: int, high: int) -> Value:
        ends = graph.binary("Min", own[high], others[high])
        length = graph.binary("Sub", ends, graph.binary("Max", own[low], others[low]))
        return graph.unary("Relu", length)

    common = graph.binary("Mul", extent(0, 2), extent(1, 3))
    return common, graph.binary("Sub", graph.add(own[4], others[4]), common)


def as_float(graph: GraphWriter, x: Value) -> Value:
    """Append a Cast to float32."""
    return graph.op("Cast", [x], x.shape, to=1)
