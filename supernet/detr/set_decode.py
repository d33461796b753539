"""Sets of queries to detections: no anchors, no NMS.

DETR's queries each say one object, of their likeliest class. SAM-DETR's best pairs of query and
class are taken. Shape suffixes: B batch, Q queries, K classes.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..boxes import cxcywh_to_xyxy
from ..onnx_graph import GraphWriter, Value
from ..operators.decode import KEEP, Detections


class SetDecode(nn.Module):
    """Logits and boxes to detections in pixels, best first, at most 100."""

    def __init__(self, num_classes: int, image_size: tuple[int, int], *, focal: bool) -> None:
        """Fix the image (height, width) that boxes are clipped to."""
        super().__init__()
        self.num_classes, self.image_size, self.focal = num_classes, image_size, focal

    def forward(self, logits_BQK: Tensor, boxes_BQ4: Tensor) -> list[Detections]:
        """Return the detections of each image."""
        height, width = self.image_size
        limit = boxes_BQ4.new_tensor([width, height] * 2)
        corners = torch.minimum((cxcywh_to_xyxy(boxes_BQ4) * limit).clamp_min(0), limit)
        found = []
        for logits_QK, boxes_Q4 in zip(logits_BQK, corners, strict=True):
            if self.focal:
                flat = logits_QK.sigmoid().flatten()
                scores, index = flat.topk(min(KEEP, len(flat)))
                rows, labels = index // self.num_classes, index % self.num_classes
            else:
                best, classes = logits_QK.softmax(-1)[:, :-1].max(-1)
                scores, rows = best.topk(min(KEEP, len(best)))
                labels = classes[rows]
            found.append(Detections(boxes_Q4[rows], scores, labels))
        return found

    def rule(self) -> dict[str, Any]:
        """Return all that decoding needs, for programs without HEAT."""
        return {"kind": "set", "focal": self.focal, "keep": KEEP}

    def emit(self, graph: GraphWriter, logits: Value, boxes: Value) -> tuple[Value, Value, Value]:
        """Write it for one image: boxes [n, 4], scores [n], labels [n], n always the same."""
        logits, boxes = graph.full(logits), graph.full(boxes)
        with graph.full_precision():
            _, Q, K = logits.shape
            flat = graph.reshape(logits, Q, K)
            if self.focal:
                chance = graph.reshape(graph.unary("Sigmoid", flat), Q * K)
                count = min(KEEP, Q * K)
                scores, index = graph.op_many("TopK", [chance, graph.ints(count)], [(count,)] * 2)
                rows = graph.binary("Div", index, graph.ints(K))
                labels = graph.binary("Mod", index, graph.ints(K))
            else:
                chance = graph.slice(graph.unary("Softmax", flat, axis=-1), 1, 0, K - 1)
                one = graph.ints(1)
                best, classes = graph.op_many("TopK", [chance, one], [(Q, 1)] * 2, axis=1)
                best, classes = graph.reshape(best, Q), graph.reshape(classes, Q)
                count = min(KEEP, Q)
                scores, rows = graph.op_many("TopK", [best, graph.ints(count)], [(count,)] * 2)
                labels = graph.op("Gather", [classes, rows], (count,), axis=0)
            picked = graph.op("Gather", [graph.reshape(boxes, Q, 4), rows], (count, 4), axis=0)
            return self._emit_corners(graph, picked), scores, labels

    def _emit_corners(self, graph: GraphWriter, boxes: Value) -> Value:
        centre, side = graph.split(boxes, 1, (2, 2))
        half = graph.binary("Mul", side, graph.scalar(0.5))
        corners = graph.concat([graph.binary("Sub", centre, half), graph.add(centre, half)], 1)
        height, width = self.image_size
        limit = graph.const(np.array([width, height] * 2, dtype=np.float32))
        pixels = graph.binary("Max", graph.binary("Mul", corners, limit), graph.scalar(0.0))
        return graph.binary("Min", pixels, limit)
