"""Preprocessing and the prediction head: the first and the last maps of the network."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...graph.nodes import Value
from ...graph.preprocess import Preprocess
from ...graph.writer import GraphWriter
from .base import Operator, Shape, as_it_is, no_macs, no_params, same_shape
from .convbn import conv_macs, conv_params
from .cutting import Streams, copy_linear
from .entries import Entry, Macs

PRIOR = 0.01
"""Initial class probability; sets the class bias to -log(99)."""


class Head(nn.Module):
    """Class, box and objectness convolutions with YOLOF's implicit objectness (spec section 5).

    Channels are anchor-major: class logits `a * K + k`, deltas `a * 4 + (dx, dy, dw, dh)`.
    """

    box_channels, box_kernel = 4, 3
    """Channels of the box convolution for an anchor, and its kernel."""

    def __init__(self, d: int, num_anchors: int, num_classes: int) -> None:
        super().__init__()
        self.num_anchors, self.num_classes = num_anchors, num_classes
        self.cls = nn.Conv2d(d, num_anchors * num_classes, 3, padding=1)
        k = self.box_kernel
        self.box = nn.Conv2d(d, num_anchors * self.box_channels, k, padding=k // 2)
        self.obj = nn.Conv2d(d, num_anchors, 3, padding=1)
        for conv in (self.cls, self.box, self.obj):
            nn.init.normal_(conv.weight, std=0.01)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
        assert self.cls.bias is not None
        nn.init.constant_(self.cls.bias, -math.log((1 - PRIOR) / PRIOR))

    @torch.no_grad()
    def begin_at(self, growth: float) -> None:
        """Set the biases of boxes: anchors whose sides are multiplied by e^growth."""
        assert self.box.bias is not None
        self.box.bias.view(self.num_anchors, 4)[:, 2:] = growth

    def forward(self, t_cls: Tensor, t_reg: Tensor) -> tuple[Tensor, ...]:
        """Return (class logits [B, A, K, h, w], deltas [B, A, 4, h, w])."""
        B, _, h, w = t_cls.shape
        deltas = self.box(t_reg).view(B, self.num_anchors, 4, h, w).float()
        return self._logits(t_cls, t_reg), deltas

    def _logits(self, t_cls: Tensor, t_reg: Tensor) -> Tensor:
        B, _, h, w = t_cls.shape
        c = self.cls(t_cls).view(B, self.num_anchors, self.num_classes, h, w).float()
        o = self.obj(t_reg).view(B, self.num_anchors, 1, h, w).float()
        # c + o - log(1 + e^c + e^o), which is the logit of sigmoid(c) * sigmoid(o).
        normaliser = torch.logaddexp(torch.logaddexp(c, o), torch.zeros_like(c))
        logits: Tensor = c + o - normaliser
        return logits

    def emit(self, graph: GraphWriter, t_cls: Value, t_reg: Value) -> tuple[Value, Value]:
        """Write the convolutions; scores are sigmoid(c) * sigmoid(o) [A, K, hw].

        Of a batch both results have it as their first axis.
        """
        B, _, h, w = t_cls.shape
        A, K = self.num_anchors, self.num_classes
        each = (A,) if B == 1 else (B, A)
        c = graph.unary("Sigmoid", graph.conv(t_cls, self.cls))
        o = graph.unary("Sigmoid", graph.conv(t_reg, self.obj))
        scores = graph.binary(
            "Mul", graph.reshape(c, *each, K, h * w), graph.reshape(o, *each, 1, h * w)
        )
        return scores, self._emit_deltas(graph, graph.conv(t_reg, self.box), *each)

    def _emit_deltas(self, graph: GraphWriter, boxes: Value, *each: int) -> Value:
        """Write what makes deltas [A, 4, hw] of the box convolution's map."""
        h, w = boxes.shape[-2:]
        return graph.reshape(boxes, *each, 4, h * w)


def head_operator(head: type[Head], macs_of_deltas: Callable[[Entry], int]) -> Operator:
    """Return the row of a kind of head; what makes deltas of its convolution has its own MACs."""

    def maps(entry: Entry, channels: tuple[int, ...]) -> tuple[Shape, ...]:
        return tuple((count, entry.h, entry.w) for count in channels)

    def convolutions(entry: Entry) -> tuple[tuple[int, int], tuple[int, int]]:
        scores, boxes = entry.classes + 1, head.box_channels
        return (entry.anchors * scores, 3), (entry.anchors * boxes, head.box_kernel)

    def macs(entry: Entry) -> Macs:
        total = Macs(attention=macs_of_deltas(entry))
        for channels, kernel in convolutions(entry):
            total += conv_macs(entry.d_in, channels, kernel, entry.h * entry.w)
        return total

    def params(entry: Entry) -> int:
        return sum(conv_params(entry.d_in, *convolution) for convolution in convolutions(entry))

    return Operator(
        build=lambda entry: head(entry.d_in, entry.anchors, entry.classes),
        macs=macs,
        params=params,
        inputs=lambda entry: maps(entry, (entry.d_in, entry.d_in)),
        outputs=lambda entry: maps(entry, (entry.anchors * entry.classes, entry.anchors * 4)),
        parameters=("classes", "anchors"),
        narrow=as_it_is,
        inherit=_inherit,
    )


def _inherit(old: Head, new: Head, streams: Streams) -> None:
    for wide, narrow in ((old.cls, new.cls), (old.box, new.box), (old.obj, new.obj)):
        copy_linear(wide, narrow, streams.own)


HEAD = head_operator(Head, lambda entry: 0)
PREPROCESS = Operator(
    build=lambda entry: Preprocess(),
    macs=no_macs,
    params=no_params,
    inputs=same_shape,
    outputs=same_shape,
    narrow=as_it_is,
)
