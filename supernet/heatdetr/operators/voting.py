"""Box voting: a box that NMS keeps becomes a mean of itself and of what it overlaps.

Candidate j of the same class counts by its score s and by its overlap with the kept box i:

    w_ij = s_j^2 * exp(-(1 - IoU_ij)^2 / SPREAD)

The kept box counts once more, by s_i^2. This is the variance voting of He et al. 2019, Bounding Box
Regression with Uncertainty, with scores in place of learnt variances. Scores and labels stay.

Shape suffixes: N candidates, best first; n kept; V voters.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...boxes import iou_matrix
from ...graph.nodes import Value
from ...graph.writer import GraphWriter
from .suppress import as_float, emit_overlaps

SPREAD = 0.05
"""Squared distance from an IoU of 1 at which a candidate counts 1/e."""
VOTERS = 256
"""Candidates that vote, best first; those after them score too low to matter."""
LEAST = 1e-9
"""No union of boxes and no sum of votes is smaller."""


def votes(kept_n4: Tensor, voters_V4: Tensor, scores_V: Tensor) -> Tensor:
    """Return how much each voter counts for each kept box, [n, V].

    Boxes are shifted so that those of different classes do not overlap.
    """
    off_nV = 1 - iou_matrix(kept_n4, voters_V4)
    return scores_V**2 * torch.exp(-(off_nV**2) / SPREAD)


def voted(boxes_N4: Tensor, apart_N4: Tensor, scores_N: Tensor, kept_n: Tensor) -> Tensor:
    """Return the voted boxes of the kept rows, [n, 4].

    `apart_N4` are the boxes shifted so that those of different classes do not overlap.
    """
    weights_nV = votes(apart_N4[kept_n], apart_N4[:VOTERS], scores_N[:VOTERS])
    own_n1 = scores_N[kept_n, None] ** 2
    total_n1 = (weights_nV.sum(1, keepdim=True) + own_n1).clamp_min(LEAST)
    return (weights_nV @ boxes_N4[:VOTERS] + own_n1 * boxes_N4[kept_n]) / total_n1


class Ballot(NamedTuple):
    """Boxes in a graph, with any batch axes before; their number n is -1 where it is not known."""

    boxes: Value
    """Corners, [..., n, 4]."""
    apart: Value
    """The same, shifted by class."""
    scores: Value
    """Of the head, [..., n]."""


def emit_voted(graph: GraphWriter, kept: Ballot, candidates: Ballot, threshold: float) -> Value:
    """Append `voted`; candidates that score no more than the threshold do not count."""
    *batch, n, _ = kept.boxes.shape
    axis = len(batch)
    V = min(VOTERS, candidates.scores.shape[axis])
    voters = Ballot(*(graph.slice(part, axis, 0, V) for part in candidates))

    def columns(boxes: Value) -> list[Value]:
        return graph.split(boxes, axis + 1, (1,) * 4)

    def with_area(boxes: Value) -> list[Value]:
        x0, y0, x1, y1 = corners = columns(boxes)
        area = graph.binary("Mul", graph.binary("Sub", x1, x0), graph.binary("Sub", y1, y0))
        return [*corners, area]

    others = [graph.swap(column) for column in with_area(voters.apart)]
    common, union = emit_overlaps(graph, with_area(kept.apart), others)
    iou = graph.binary("Div", common, graph.binary("Max", union, graph.scalar(LEAST)))
    off = graph.binary("Sub", graph.scalar(1.0), iou)
    near = graph.binary("Mul", graph.binary("Mul", off, off), graph.scalar(-1 / SPREAD))

    counts = as_float(graph, graph.binary("Greater", voters.scores, graph.scalar(threshold)))
    squares = graph.binary("Mul", graph.binary("Mul", voters.scores, voters.scores), counts)
    squares = graph.reshape(squares, *batch, 1, V)
    weights = graph.binary("Mul", graph.unary("Exp", near), squares)
    once_more = graph.reshape(kept.scores, *batch, n, 1)
    once_more = graph.binary("Mul", once_more, once_more)

    def summed(parts: Value) -> Value:
        # A negative axis of no rows is reduced wrongly by ONNX Runtime 1.31. No MatMul: it would be
        # one in float32 in a graph of another precision, and TensorRT has none for Turing.
        return graph.op("ReduceSum", [parts, graph.ints(axis + 1)], (*batch, n, 1), keepdims=1)

    corners = [graph.swap(column) for column in columns(voters.boxes)]
    sums = [summed(graph.binary("Mul", weights, corner)) for corner in corners]
    boxes = graph.add(graph.concat(sums, axis + 1), graph.binary("Mul", kept.boxes, once_more))
    total = graph.add(summed(weights), once_more)
    return graph.binary("Div", boxes, graph.binary("Max", total, graph.scalar(LEAST)))
