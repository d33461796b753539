"""A head whose boxes are means of distributions: one over the distances of each side.

Li et al. 2020, Generalized Focal Loss, section 3.2; there distances are from a point, in strides,
here from an anchor's centre, in sides of the anchor, so that anchors are where boxes begin.
The mean distances become deltas in the graph, so that all heads are decoded in the same way.

Shape suffixes: B batch, A anchors per cell, N bins, h and w cells.
"""

import numpy as np
import torch
from torch import Tensor

from ...graph.nodes import Array, Value
from ...graph.writer import GraphWriter
from .entries import Entry
from .head import Head, head_operator

BINS = 16
FIRST, STEP = -0.5, 0.25
"""Distances of the bins from an anchor's centre, in sides of the anchor: -0.5, -0.25 ... 3.25."""
SMALLEST = 1e-3
"""Least side of a box whose logarithm is taken, in sides of the anchor."""
STEEP = 8.0
"""How fast the first distributions fall away from their means, in logits for a side."""


def distances() -> Array:
    """Return the distances of the bins, [N] float32."""
    return FIRST + STEP * np.arange(BINS, dtype=np.float32)


def _sums() -> Array:
    """Return what makes (dx, dy, width, height) of the shares of all bins, [4, 4 * N] float32.

    Sides are in the order left, top, right, bottom; dx is (right - left) / 2, the width their sum.
    """
    own = np.array([[-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5], [1, 0, 1, 0], [0, 1, 0, 1]])
    return np.kron(own, distances()).astype(np.float32)


class DistributionHead(Head):
    """A head that predicts N shares for each of the four sides of a box.

    Channels of the box convolution are anchor-major: `(a * 4 + side) * N + bin`, sides left, top,
    right, bottom.
    """

    box_channels, box_kernel = 4 * BINS, 1

    def __init__(self, d: int, num_anchors: int, num_classes: int) -> None:
        super().__init__(d, num_anchors, num_classes)
        self.register_buffer("sums", torch.from_numpy(_sums()), persistent=False)
        self.begin_at(0.0)

    @torch.no_grad()
    def begin_at(self, growth: float) -> None:
        """Set the biases of boxes: anchors whose sides are multiplied by e^growth."""
        assert self.box.bias is not None
        off = torch.from_numpy(np.abs(distances() - 0.5 * np.exp(growth)))
        self.box.bias.copy_((-STEEP * off).repeat(self.num_anchors * 4))

    def forward(self, t_cls: Tensor, t_reg: Tensor) -> tuple[Tensor, ...]:
        """Return (class logits [B, A, K, h, w], deltas [B, A, 4, h, w]).

        In training also the logits of the bins, [B, A, 4, N, h, w].
        """
        B, _, h, w = t_reg.shape
        A = self.num_anchors
        bins_BA4Nhw = self.box(t_reg).view(B, A, 4, BINS, h, w).float()
        shares = bins_BA4Nhw.softmax(3).view(B, A, 4 * BINS, h * w)
        with torch.autocast("cuda" if t_reg.is_cuda else "cpu", enabled=False):
            found = self.sums.float() @ shares.float()
        shift, side = found.view(B, A, 4, h, w).split(2, 2)
        deltas = torch.cat([shift, side.clamp_min(SMALLEST).log()], 2)
        maps = self._logits(t_cls, t_reg), deltas
        return (*maps, bins_BA4Nhw) if self.training else maps

    def _emit_deltas(self, graph: GraphWriter, boxes: Value, *each: int) -> Value:
        """Write softmax, sums and the logarithm of the sides, in full precision."""
        h, w = boxes.shape[-2:]
        boxes = graph.full(boxes)
        with graph.full_precision():
            shares = graph.op(
                "Softmax",
                [graph.reshape(boxes, *each, 4, BINS, h * w)],
                (*each, 4, BINS, h * w),
                axis=len(each) + 1,
            )
            found = graph.matmul(
                graph.const(_sums()), graph.reshape(shares, *each, 4 * BINS, h * w)
            )
            shift, side = graph.split(found, len(each), (2, 2))
            side = graph.unary("Log", graph.binary("Max", side, graph.scalar(SMALLEST)))
            return graph.concat([shift, side], len(each))


def _macs_of_deltas(entry: Entry) -> int:
    return entry.anchors * 4 * 4 * BINS * entry.h * entry.w


HEAD_OF_DISTRIBUTIONS = head_operator(DistributionHead, _macs_of_deltas)
