"""Anchors, box decoding, and class-wise NMS: from head maps to boxes in pixels (spec section 5).

One rule in two forms: `Decode.forward` in torch for training and evaluation, `Decode.emit` inside
the exported graph. Anchors are ordered anchor-major: index `a * h * w + cell`.
Shape suffixes: B batch, A anchors per cell, K classes, L = h * w cells, M = A * L anchors.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..architecture import Entry
from ..boxes import iou_matrix
from ..onnx_graph import Array, GraphWriter, Value
from .base import Operator, no_macs, no_params

STRIDE = 32
MAX_SHIFT_PX = 32.0
MAX_LOG_GROWTH = math.log(1000 / 16)
SCORE_THRESHOLD = 0.05
PRE_NMS = 1000
NMS_IOU = 0.6
KEEP = 100


@dataclass(frozen=True, slots=True)
class Detections:
    """Objects of one image, best first."""

    boxes_xyxy: Tensor
    """Corners in pixels of the network input, [N, 4]."""
    scores: Tensor
    """Probabilities, [N]."""
    labels: Tensor
    """Class indices, [N] int64."""


def make_anchors(h: int, w: int, sizes: tuple[int, ...], offset: float) -> Array:
    """Return anchors (cx, cy, side) in pixels, [A * h * w, 3] float32."""
    y, x = np.meshgrid(np.arange(h) + offset, np.arange(w) + offset, indexing="ij")
    centres = np.stack([x.ravel(), y.ravel()], 1) * STRIDE
    rows = [np.column_stack([centres, np.full(h * w, side)]) for side in sizes]
    return np.concatenate(rows).astype(np.float32)


class Decode(nn.Module):
    """Head maps to detections."""

    def __init__(
        self, sizes: tuple[int, ...], num_classes: int, image_size: tuple[int, int], offset: float
    ) -> None:
        """Fix the anchors and the image (height, width) that boxes are clipped to."""
        super().__init__()
        self.sizes, self.num_classes, self.offset = sizes, num_classes, offset
        self.image_size = image_size

    def anchors_xyxy(self, h: int, w: int) -> Tensor:
        """Return the anchor boxes, [M, 4]."""
        rows = torch.from_numpy(make_anchors(h, w, self.sizes, self.offset))
        half = rows[:, 2:] / 2
        return torch.cat([rows[:, :2] - half, rows[:, :2] + half], 1)

    def boxes(self, deltas_BA4hw: Tensor) -> Tensor:
        """Decode deltas to boxes, [B, M, 4] xyxy, not clipped."""
        B, _, _, h, w = deltas_BA4hw.shape
        anchors = make_anchors(h, w, self.sizes, self.offset)
        rows_M3 = torch.from_numpy(anchors).to(deltas_BA4hw)
        deltas_BM4 = deltas_BA4hw.flatten(3).transpose(2, 3).reshape(B, -1, 4)
        side = rows_M3[:, 2:]
        shift = (deltas_BM4[..., :2] * side).clamp(-MAX_SHIFT_PX, MAX_SHIFT_PX)
        centre = rows_M3[:, :2] + shift
        growth = deltas_BM4[..., 2:].clamp(-MAX_LOG_GROWTH, MAX_LOG_GROWTH)
        half = growth.exp() * side / 2
        return torch.cat([centre - half, centre + half], -1)

    def forward(self, logits_BAKhw: Tensor, deltas_BA4hw: Tensor) -> list[Detections]:
        """Return the detections of each image."""
        height, width = self.image_size
        limit = torch.tensor([width, height] * 2, dtype=torch.float32, device=deltas_BA4hw.device)
        boxes_BM4 = torch.minimum(self.boxes(deltas_BA4hw).clamp_min(0), limit)
        scores_BAKL = logits_BAKhw.sigmoid().flatten(3)
        return [
            self.select(scores, boxes) for scores, boxes in zip(scores_BAKL, boxes_BM4, strict=True)
        ]

    def select(self, scores_AKL: Tensor, boxes_M4: Tensor, nms_iou: float = NMS_IOU) -> Detections:
        """Return the detections among scores [A, K, L] and clipped boxes [M, 4] of one image."""
        _, K, L = scores_AKL.shape
        flat = scores_AKL.flatten()
        scores, index = flat.topk(min(PRE_NMS, flat.numel()))
        index = index[scores > SCORE_THRESHOLD]
        scores = scores[scores > SCORE_THRESHOLD]
        labels = index // L % K
        boxes = boxes_M4[index // (K * L) * L + index % L]
        shifted = boxes + labels[:, None] * self._class_offset()
        kept = nms(shifted, nms_iou, KEEP)
        return Detections(boxes[kept], scores[kept], labels[kept])

    def _class_offset(self) -> float:
        """Return a distance that no clipped box crosses, so that one NMS serves all classes."""
        return float(max(self.image_size) + 1)

    def emit(self, graph: GraphWriter, scores: Value, deltas: Value) -> tuple[Value, Value, Value]:
        """Write decode and NMS; outputs boxes [n, 4], scores [n], labels [n], n <= 100."""
        scores, deltas = graph.full(scores), graph.full(deltas)
        with graph.full_precision():
            return self._emit(graph, scores, deltas)

    def _emit(self, graph: GraphWriter, scores: Value, deltas: Value) -> tuple[Value, Value, Value]:
        A, K, L = scores.shape
        boxes = self._emit_boxes(graph, deltas, L)
        count = min(PRE_NMS, A * K * L)
        best, index = graph.op_many(
            "TopK",
            [graph.reshape(scores, A * K * L), graph.ints(count)],
            [(count,)] * 2,
            axis=0,
        )
        cells, block = graph.ints(L), graph.ints(K * L)
        labels = graph.binary("Mod", graph.binary("Div", index, cells), graph.ints(K))
        anchor = graph.add(
            graph.binary("Mul", graph.binary("Div", index, block), cells),
            graph.binary("Mod", index, cells),
        )
        picked = graph.op("Gather", [boxes, anchor], (count, 4), axis=0)
        offsets = graph.binary(
            "Mul",
            graph.op("Cast", [graph.reshape(labels, count, 1)], (count, 1), to=1),
            graph.scalar(self._class_offset()),
        )
        selected = graph.op(
            "NonMaxSuppression",
            [
                graph.reshape(graph.add(picked, offsets), 1, count, 4),
                graph.reshape(best, 1, 1, count),
                graph.ints(KEEP),
                graph.const(np.array([NMS_IOU], dtype=np.float32)),
                graph.const(np.array([SCORE_THRESHOLD], dtype=np.float32)),
            ],
            (-1, 3),
        )
        column = graph.op("Gather", [selected, graph.const(np.array(2))], (-1,), axis=1)
        return (
            graph.op("Gather", [picked, column], (-1, 4), axis=0),
            graph.op("Gather", [best, column], (-1,), axis=0),
            graph.op("Gather", [labels, column], (-1,), axis=0),
        )

    def _emit_boxes(self, graph: GraphWriter, deltas: Value, L: int) -> Value:
        A = len(self.sizes)
        h, w = (-(-side // STRIDE) for side in self.image_size)
        anchors = make_anchors(h, w, self.sizes, self.offset).reshape(A, L, 3)
        centre = graph.const(np.ascontiguousarray(anchors[..., :2].transpose(0, 2, 1)))
        side = graph.const(np.ascontiguousarray(anchors[..., 2:].transpose(0, 2, 1)))
        xy, wh = graph.split(deltas, 1, (2, 2))
        shift = self._clip(graph, graph.binary("Mul", xy, side), MAX_SHIFT_PX)
        growth = graph.unary("Exp", self._clip(graph, wh, MAX_LOG_GROWTH))
        half = graph.binary("Mul", graph.binary("Mul", growth, side), graph.scalar(0.5))
        centre = graph.add(centre, shift)
        corners = graph.concat([graph.binary("Sub", centre, half), graph.add(centre, half)], 1)
        boxes = graph.reshape(graph.transpose(corners, 0, 2, 1), A * L, 4)
        height, width = self.image_size
        limit = graph.const(np.array([width, height] * 2, dtype=np.float32))
        return graph.binary("Min", graph.binary("Max", boxes, graph.scalar(0.0)), limit)

    @staticmethod
    def _clip(graph: GraphWriter, x: Value, bound: float) -> Value:
        return graph.op("Clip", [x, graph.scalar(-bound), graph.scalar(bound)], x.shape)


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


def _build(entry: Entry) -> Decode:
    sizes = tuple(STRIDE * 2**index for index in range(entry.anchors))
    return Decode(sizes, int(entry.extra), (entry.h * STRIDE, entry.w * STRIDE), 0.0)


DECODE = Operator(
    _build,
    no_macs,
    no_params,
    lambda entry: (
        (entry.anchors, int(entry.extra), entry.h * entry.w),
        (entry.anchors, 4, entry.h * entry.w),
    ),
    lambda entry: ((0, 4, 1), (0, 1, 1), (0, 1, 1)),
)
