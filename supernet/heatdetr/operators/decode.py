"""Anchors, box decoding, and class-wise NMS: from head maps to boxes in pixels (spec section 5).

A one-to-one head predicts each object once: its best candidates are the detections, without NMS.
With box voting the boxes that NMS keeps become means (`voting.py`).

One rule in two forms: `Decode.forward` in torch for training and evaluation, `Decode.emit` inside
the exported graph. Anchors are ordered anchor-major: index `a * h * w + cell`.
Shape suffixes: B batch, A anchors per cell, K classes, L = h * w cells, M = A * L anchors.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from ...boxes import KEEP, Detections
from ...data.score_calibration import ScoreCalibration
from ...graph.calibrated import calibrated, emit_calibrated
from ...graph.nodes import Array, Value
from ...graph.writer import GraphWriter
from .anchor_rule import AnchorRule
from .base import Operator, as_it_is, no_macs, no_params
from .entries import Entry
from .suppress import as_float, nms, survivors
from .voting import SPREAD, VOTERS, Ballot, emit_voted, voted

MAX_SHIFT_PX = 32.0
MAX_LOG_GROWTH = math.log(1000 / 16)
SCORE_THRESHOLD = 0.05
PRE_NMS = 1000
NMS_IOU = 0.6


def make_anchors(h: int, w: int, sizes: tuple[int, ...], offset: float, stride: int) -> Array:
    """Return anchors (cx, cy, side) in pixels, [A * h * w, 3] float32."""
    y, x = np.meshgrid(np.arange(h) + offset, np.arange(w) + offset, indexing="ij")
    centres = np.stack([x.ravel(), y.ravel()], 1) * stride
    rows = [np.column_stack([centres, np.full(h * w, side)]) for side in sizes]
    return np.concatenate(rows).astype(np.float32)


class Decode(nn.Module):
    """Head maps to detections."""

    def __init__(
        self,
        sizes: tuple[int, ...],
        num_classes: int,
        image_size: tuple[int, int],
        offset: float,
        *,
        stride: int = 32,
        nms: bool = True,
        voting: bool = False,
    ) -> None:
        """Decode by anchors of these sizes in an image of (height, width).

        With `voting` the boxes that NMS keeps are averaged with those that they overlap.
        """
        super().__init__()
        self.stride, self.nms, self.voting = stride, nms, nms and voting
        self.sizes, self.num_classes, self.offset = sizes, num_classes, offset
        self.image_size = image_size
        self.most = PRE_NMS if nms else KEEP
        """Most candidates, by score."""
        self.calibration: ScoreCalibration | None = None
        """What makes probabilities of the scores of selected detections."""

    def anchors(self, h: int, w: int) -> Array:
        """Return the anchors (cx, cy, side), [M, 3]."""
        return make_anchors(h, w, self.sizes, self.offset, self.stride)

    def anchors_xyxy(self, h: int, w: int) -> Tensor:
        """Return the anchor boxes, [M, 4]."""
        rows = torch.from_numpy(self.anchors(h, w))
        half = rows[:, 2:] / 2
        return torch.cat([rows[:, :2] - half, rows[:, :2] + half], 1)

    def boxes(self, deltas_BA4hw: Tensor) -> Tensor:
        """Decode deltas to boxes, [B, M, 4] xyxy, not clipped."""
        B, _, _, h, w = deltas_BA4hw.shape
        anchors = self.anchors(h, w)
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
        return [
            self.select(*parts)
            for parts in zip(*self.open(logits_BAKhw, deltas_BA4hw), strict=True)
        ]

    def open(self, logits_BAKhw: Tensor, deltas_BA4hw: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores [B, A, K, L] and clipped boxes in pixels [B, M, 4]."""
        return logits_BAKhw.sigmoid().flatten(3), self.boxes_px(deltas_BA4hw)

    def boxes_px(self, deltas_BA4hw: Tensor) -> Tensor:
        """Return boxes clipped to the image, [B, M, 4] xyxy."""
        height, width = self.image_size
        limit = torch.tensor([width, height] * 2, dtype=torch.float32, device=deltas_BA4hw.device)
        return torch.minimum(self.boxes(deltas_BA4hw).clamp_min(0), limit)

    def select(self, scores_AKL: Tensor, boxes_M4: Tensor) -> Detections:
        """Return the detections among scores [A, K, L] and clipped boxes [M, 4] of one image."""
        found = self.candidates(scores_AKL, boxes_M4)
        if self.nms:
            apart = self.apart(found)
            kept = nms(apart, NMS_IOU, KEEP)
            boxes = found.boxes_xyxy[kept]
            if self.voting:
                boxes = voted(found.boxes_xyxy, apart, found.scores, kept)
            found = Detections(boxes, found.scores[kept], found.labels[kept])
        return calibrated(found, self.calibration)

    def candidates(self, scores_AKL: Tensor, boxes_M4: Tensor) -> Detections:
        """Return the best by score, before NMS and calibration; with NMS only above a threshold."""
        _, K, L = scores_AKL.shape
        flat = scores_AKL.flatten()
        scores, index = flat.topk(min(self.most, flat.numel()))
        if self.nms:
            index = index[scores > SCORE_THRESHOLD]
            scores = scores[scores > SCORE_THRESHOLD]
        labels = index // L % K
        return Detections(boxes_M4[index // (K * L) * L + index % L], scores, labels)

    def apart(self, found: Detections) -> Tensor:
        """Return boxes shifted so that those of different classes do not overlap, [N, 4]."""
        return found.boxes_xyxy + found.labels[:, None] * self._class_offset()

    def rule(self) -> AnchorRule:
        """Return all that decoding needs, for programs without HEAT."""
        rule: AnchorRule = {
            "stride": self.stride,
            "anchor_sizes": list(self.sizes),
            "anchor_offset": self.offset,
            "max_shift_px": MAX_SHIFT_PX,
            "max_log_growth": MAX_LOG_GROWTH,
            "score_threshold": SCORE_THRESHOLD,
            "pre_nms": PRE_NMS,
            "nms_iou": NMS_IOU if self.nms else None,
            "keep": KEEP,
        }
        if self.voting:
            rule |= {"vote_spread": SPREAD, "voters": VOTERS}
        if self.calibration is not None:
            rule["calibration"] = self.calibration.rule()
        return rule

    def _class_offset(self) -> float:
        """Return a distance that no clipped box crosses, so that one NMS serves all classes."""
        return float(max(self.image_size) + 1)

    def emit(
        self, graph: GraphWriter, scores: Value, deltas: Value, *, padded: bool = False
    ) -> tuple[Value, Value, Value]:
        """Write decode and NMS; outputs boxes [n, 4], scores [n], labels [n], n <= 100.

        Without NMS n is 100 always.

        `padded` outputs have fixed shapes, [B, 100, 4], [B, 100] and [B, 100], and a score of 0
        in rows without a detection: for batches, and for runtimes without NMS.
        Calibrated scores are in the order that they had before.
        """
        scores, deltas = graph.full(scores), graph.full(deltas)
        with graph.full_precision():
            write = self._emit_padded if padded else self._emit
            boxes, scores, labels = write(graph, scores, deltas)
            return boxes, emit_calibrated(graph, scores, labels, self.calibration), labels

    def _emit(self, graph: GraphWriter, scores: Value, deltas: Value) -> tuple[Value, Value, Value]:
        boxes = self._emit_boxes(graph, deltas)
        best, labels, anchor = self._candidates(graph, scores)
        (count,) = best.shape
        picked = graph.op("Gather", [boxes, anchor], (count, 4), axis=0)
        if not self.nms:
            return picked, best, labels
        offsets = graph.binary(
            "Mul",
            as_float(graph, graph.reshape(labels, count, 1)),
            graph.scalar(self._class_offset()),
        )
        apart = graph.add(picked, offsets)
        selected = graph.op(
            "NonMaxSuppression",
            [
                graph.reshape(apart, 1, count, 4),
                graph.reshape(best, 1, 1, count),
                graph.ints(KEEP),
                graph.const(np.array([NMS_IOU], dtype=np.float32)),
                graph.const(np.array([SCORE_THRESHOLD], dtype=np.float32)),
            ],
            (-1, 3),
        )
        column = graph.op("Gather", [selected, graph.const(np.array(2))], (-1,), axis=1)
        kept = graph.op("Gather", [picked, column], (-1, 4), axis=0)
        found = graph.op("Gather", [best, column], (-1,), axis=0)
        if self.voting:
            own = Ballot(kept, graph.op("Gather", [apart, column], (-1, 4), axis=0), found)
            kept = emit_voted(graph, own, Ballot(picked, apart, best), SCORE_THRESHOLD)
        return kept, found, graph.op("Gather", [labels, column], (-1,), axis=0)

    def _emit_padded(
        self, graph: GraphWriter, scores: Value, deltas: Value
    ) -> tuple[Value, Value, Value]:
        """Write decode and NMS by products of matrices, without shapes that depend on values."""
        A, K, L = scores.shape[-3:]
        B = math.prod(scores.shape[:-3])
        boxes = graph.reshape(self._emit_boxes(graph, deltas), B, A * L, 4)
        best, labels, anchor = self._candidates(graph, graph.reshape(scores, B, A, K, L))
        count = best.shape[1]
        picked = self._rows(graph, boxes, anchor, 4)
        if not self.nms:
            return picked, best, labels
        offsets = graph.binary("Mul", as_float(graph, labels), graph.scalar(self._class_offset()))
        corners = [
            graph.add(graph.reshape(corner, B, count), offsets)
            for corner in graph.split(picked, 2, (1,) * 4)
        ]
        alive = survivors(graph, best, corners, iou=NMS_IOU, threshold=SCORE_THRESHOLD)
        alive = graph.binary("Mul", best, alive)
        kept = min(KEEP, count)
        found, rank = graph.op_many("TopK", [alive, graph.ints(kept)], [(B, kept)] * 2, axis=1)
        boxes = self._rows(graph, picked, rank, 4)
        if self.voting:
            apart = graph.add(picked, graph.reshape(offsets, B, count, 1))
            own = Ballot(boxes, self._rows(graph, apart, rank, 4), found)
            boxes = emit_voted(graph, own, Ballot(picked, apart, best), SCORE_THRESHOLD)
        return boxes, found, graph.op("GatherElements", [labels, rank], (B, kept), axis=1)

    def _candidates(self, graph: GraphWriter, scores: Value) -> tuple[Value, Value, Value]:
        """Return scores, labels and anchors of the best, best first, [n], or [B, n] of a batch."""
        *batch, A, K, L = scores.shape
        count = min(self.most, A * K * L)
        best, index = graph.op_many(
            "TopK",
            [graph.reshape(scores, *batch, A * K * L), graph.ints(count)],
            [(*batch, count)] * 2,
            axis=len(batch),
        )
        cells, block = graph.ints(L), graph.ints(K * L)
        labels = graph.binary("Mod", graph.binary("Div", index, cells), graph.ints(K))
        anchor = graph.add(
            graph.binary("Mul", graph.binary("Div", index, block), cells),
            graph.binary("Mod", index, cells),
        )
        return best, labels, anchor

    @staticmethod
    def _rows(graph: GraphWriter, table: Value, index: Value, columns: int) -> Value:
        """Return rows of each image's table [B, m, columns] by index [B, n]."""
        B, n = index.shape
        wide = graph.op(
            "Expand", [graph.reshape(index, B, n, 1), graph.ints(1, 1, columns)], (B, n, columns)
        )
        return graph.op("GatherElements", [table, wide], (B, n, columns), axis=1)

    def _emit_boxes(self, graph: GraphWriter, deltas: Value) -> Value:
        """Return boxes clipped to the image, [A * L, 4], or [B, A * L, 4] of a batch."""
        A, _, L = deltas.shape[-3:]
        batch = deltas.shape[:-3]
        axis = len(batch) + 1
        h, w = (-(-side // self.stride) for side in self.image_size)
        anchors = self.anchors(h, w).reshape(A, L, 3)
        centre = graph.const(np.ascontiguousarray(anchors[..., :2].transpose(0, 2, 1)))
        side = graph.const(np.ascontiguousarray(anchors[..., 2:].transpose(0, 2, 1)))
        xy, wh = graph.split(deltas, axis, (2, 2))
        shift = self._clip(graph, graph.binary("Mul", xy, side), MAX_SHIFT_PX)
        growth = graph.unary("Exp", self._clip(graph, wh, MAX_LOG_GROWTH))
        half = graph.binary("Mul", graph.binary("Mul", growth, side), graph.scalar(0.5))
        centre = graph.add(centre, shift)
        corners = graph.concat([graph.binary("Sub", centre, half), graph.add(centre, half)], axis)
        boxes = graph.reshape(graph.swap(corners), *batch, A * L, 4)
        height, width = self.image_size
        limit = graph.const(np.array([width, height] * 2, dtype=np.float32))
        return graph.binary("Min", graph.binary("Max", boxes, graph.scalar(0.0)), limit)

    @staticmethod
    def _clip(graph: GraphWriter, x: Value, bound: float) -> Value:
        return graph.op("Clip", [x, graph.scalar(-bound), graph.scalar(bound)], x.shape)


def _operator(*, nms: bool, voting: bool = False) -> Operator:
    def build(entry: Entry) -> Decode:
        stride = entry.stride
        sizes = tuple(stride * 2**index for index in range(entry.anchors))
        image = (entry.h * stride, entry.w * stride)
        return Decode(sizes, entry.classes, image, 0.0, stride=stride, nms=nms, voting=voting)

    return Operator(
        build=build,
        macs=no_macs,
        params=no_params,
        inputs=lambda entry: (
            (entry.anchors, entry.classes, entry.h * entry.w),
            (entry.anchors, 4, entry.h * entry.w),
        ),
        outputs=lambda entry: ((0, 4, 1), (0, 1, 1), (0, 1, 1)),
        parameters=("classes", "anchors"),
        narrow=as_it_is,
    )


DECODE = _operator(nms=True)
DECODE_VOTED = _operator(nms=True, voting=True)
TOP_K = _operator(nms=False)
