"""Sets of queries to detections: no anchors, no NMS.

Each query of DETR is one detection, of its likeliest class. Of SAM-DETR the pairs of query and
class with the highest scores are taken. Shape suffixes: B batch, Q queries, K classes.
"""

from typing import Literal, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from ..boxes import KEEP, Detections, cxcywh_to_xyxy
from ..data.score_calibration import CalibrationRule, ScoreCalibration
from ..graph.calibrated import calibrated, emit_calibrated
from ..graph.nodes import Value
from ..graph.writer import GraphWriter


class SetRule(TypedDict):
    """All that decoding needs, for programs without HEAT."""

    kind: Literal["set"]
    focal: bool
    """Whether scores are sigmoids, not a softmax with a class for no object."""
    keep: int
    """Most detections of an image."""
    calibration: NotRequired[CalibrationRule]
    """Of the scores of the detections; absent where they are as the head's."""


class SetDecode(nn.Module):
    """Logits and boxes to detections in pixels, best first, at most 100."""

    def __init__(self, num_classes: int, image_size: tuple[int, int], *, focal: bool) -> None:
        """Decode boxes of an image of (height, width), to which they are clipped."""
        super().__init__()
        self.num_classes, self.image_size, self.focal = num_classes, image_size, focal
        self.calibration: ScoreCalibration | None = None
        """What makes probabilities of the scores of selected detections."""

    def forward(self, logits_BQK: Tensor, boxes_BQ4: Tensor) -> list[Detections]:
        """Return the detections of each image."""
        return [
            self.select(*parts) for parts in zip(*self.open(logits_BQK, boxes_BQ4), strict=True)
        ]

    def open(self, logits_BQK: Tensor, boxes_BQ4: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores of real classes [B, Q, K] and clipped boxes in pixels [B, Q, 4]."""
        scores = logits_BQK.sigmoid() if self.focal else logits_BQK.softmax(-1)[..., :-1]
        return scores, self.boxes_px(boxes_BQ4)

    def boxes_px(self, boxes_BQ4: Tensor) -> Tensor:
        """Return boxes clipped to the image, [B, Q, 4] xyxy."""
        height, width = self.image_size
        limit = boxes_BQ4.new_tensor([width, height] * 2)
        return torch.minimum((cxcywh_to_xyxy(boxes_BQ4) * limit).clamp_min(0), limit)

    def select(self, scores_QK: Tensor, boxes_Q4: Tensor) -> Detections:
        """Return the detections of one image, best first; nothing is suppressed."""
        if self.focal:
            flat = scores_QK.flatten()
            scores, index = flat.topk(min(KEEP, len(flat)))
            rows, labels = index // self.num_classes, index % self.num_classes
        else:
            best, classes = scores_QK.max(-1)
            scores, rows = best.topk(min(KEEP, len(best)))
            labels = classes[rows]
        return calibrated(Detections(boxes_Q4[rows], scores, labels), self.calibration)

    def rule(self) -> SetRule:
        """Return all that decoding needs, for programs without HEAT."""
        rule: SetRule = {"kind": "set", "focal": self.focal, "keep": KEEP}
        if self.calibration is not None:
            rule["calibration"] = self.calibration.rule()
        return rule

    def emit_scores(self, graph: GraphWriter, logits: Value) -> Value:
        """Write the scores of real classes, [1, Q, K]."""
        if self.focal:
            return graph.unary("Sigmoid", logits)
        every = graph.unary("Softmax", logits, axis=-1)
        return graph.slice(every, 2, 0, logits.shape[2] - 1)

    def emit(self, graph: GraphWriter, scores: Value, boxes: Value) -> tuple[Value, Value, Value]:
        """Write decoding of one image: boxes [n, 4], scores [n], labels [n], n always the same."""
        scores, boxes = graph.full(scores), graph.full(boxes)
        with graph.full_precision():
            _, Q, K = scores.shape
            if self.focal:
                chance = graph.reshape(scores, Q * K)
                count = min(KEEP, Q * K)
                scores, index = graph.op_many("TopK", [chance, graph.ints(count)], [(count,)] * 2)
                rows = graph.binary("Div", index, graph.ints(K))
                labels = graph.binary("Mod", index, graph.ints(K))
            else:
                chance, one = graph.reshape(scores, Q, K), graph.ints(1)
                best, classes = graph.op_many("TopK", [chance, one], [(Q, 1)] * 2, axis=1)
                best, classes = graph.reshape(best, Q), graph.reshape(classes, Q)
                count = min(KEEP, Q)
                scores, rows = graph.op_many("TopK", [best, graph.ints(count)], [(count,)] * 2)
                labels = graph.op("Gather", [classes, rows], (count,), axis=0)
            picked = graph.op("Gather", [graph.reshape(boxes, Q, 4), rows], (count, 4), axis=0)
            scores = emit_calibrated(graph, scores, labels, self.calibration)
            return self._emit_corners(graph, picked), scores, labels

    def _emit_corners(self, graph: GraphWriter, boxes: Value) -> Value:
        centre, side = graph.split(boxes, 1, (2, 2))
        half = graph.binary("Mul", side, graph.scalar(0.5))
        corners = graph.concat([graph.binary("Sub", centre, half), graph.add(centre, half)], 1)
        height, width = self.image_size
        limit = graph.const(np.array([width, height] * 2, dtype=np.float32))
        pixels = graph.binary("Max", graph.binary("Mul", corners, limit), graph.scalar(0.0))
        return graph.binary("Min", pixels, limit)
