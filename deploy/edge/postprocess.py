"""Decoding and NMS in numpy, for bundles whose graph ends before them (`heat export --raw`).

The rule is that of HeatDETR's `operators/decode.py` (spec section 5), calibration of scores
included, with the card's parameters. Needs numpy only; every bundle's `detect.py` carries this
file's text.
"""

from collections.abc import Callable

import numpy as np

from .card import CalibrationRule, DecodeRule
from .session import Array, Feeds

Find = Callable[[Feeds], list[Array]]
"""From the model's inputs by name to boxes, scores and labels of one image."""


def unpad(boxes_1N4: Array, scores_1N: Array, labels_1N: Array) -> list[Array]:
    """Return the detections in padded outputs of one image."""
    kept = scores_1N[0] > 0
    return [boxes_1N4[0][kept], scores_1N[0][kept], labels_1N[0][kept]]


class Postprocess:
    """Turns the head's scores and deltas into boxes, by the card's `decode`."""

    def __init__(self, rule: DecodeRule, input_hw: tuple[int, int]) -> None:
        """Compute the centres of the anchors."""
        self.rule = rule
        height, width = input_hw
        stride = rule["stride"]
        rows, columns = -(-height // stride), -(-width // stride)
        y, x = np.meshgrid(
            np.arange(rows) + rule["anchor_offset"],
            np.arange(columns) + rule["anchor_offset"],
            indexing="ij",
        )
        self._centres_L2 = np.stack([x.ravel(), y.ravel()], 1).astype(np.float32) * stride
        self._limit = np.array([width, height] * 2, dtype=np.float32)

    def __call__(self, scores_AKL: Array, deltas_A4hw: Array) -> list[Array]:
        """Return boxes xyxy [n, 4] in pixels of the network input, scores [n], labels [n]."""
        _, classes, cells = scores_AKL.shape[-3:]  # a batch of one has an axis more
        flat = scores_AKL.reshape(-1)
        nms_iou = self.rule["nms_iou"]  # None: the head predicts each object once
        count = min(self.rule["keep" if nms_iou is None else "pre_nms"], flat.size)
        best = np.argpartition(-flat, count - 1)[:count]
        if nms_iou is not None:
            best = best[flat[best] > self.rule["score_threshold"]]
        best = best[np.lexsort((best, -flat[best]))]
        labels = best // cells % classes
        boxes = self._boxes(deltas_A4hw.reshape(-1, 4, cells), best, classes * cells)
        apart = boxes + labels[:, None] * (self._limit.max() + 1)
        kept = np.arange(len(best))
        if nms_iou is not None:
            kept = nms(apart, nms_iou, self.rule["keep"])
        if "vote_spread" in self.rule:
            boxes = self._voted(boxes, apart, flat[best].astype(np.float32), kept)
        else:
            boxes = boxes[kept]
        scores, labels = flat[best][kept].astype(np.float32), labels[kept].astype(np.int64)
        return [boxes, calibrated(scores, labels, self.rule.get("calibration")), labels]

    def _voted(self, boxes_N4: Array, apart_N4: Array, scores_N: Array, kept_n: Array) -> Array:
        """Return the means of the kept boxes and of those that they overlap (`voting.py`)."""
        voters = slice(self.rule["voters"])
        off_nV = 1 - overlaps(apart_N4[kept_n], apart_N4[voters])
        weights_nV = scores_N[voters] ** 2 * np.exp(-(off_nV**2) / self.rule["vote_spread"])
        own_n1 = scores_N[kept_n, None] ** 2
        total_n1 = weights_nV.sum(1, keepdims=True) + own_n1
        summed = weights_nV @ boxes_N4[voters] + own_n1 * boxes_N4[kept_n]
        found: Array = (summed / total_n1).astype(np.float32)
        return found

    def _boxes(self, deltas_A4L: Array, index: Array, per_anchor: int) -> Array:
        anchor, cell = index // per_anchor, index % self._centres_L2.shape[0]
        side = np.asarray(self.rule["anchor_sizes"], dtype=np.float32)[anchor][:, None]
        deltas = deltas_A4L[anchor, :, cell].astype(np.float32)
        furthest, growth = self.rule["max_shift_px"], self.rule["max_log_growth"]
        centre = self._centres_L2[cell] + np.clip(deltas[:, :2] * side, -furthest, furthest)
        half = np.exp(np.clip(deltas[:, 2:], -growth, growth)) * side * np.float32(0.5)
        corners = np.concatenate([centre - half, centre + half], 1)
        boxes: Array = np.minimum(np.maximum(corners, 0), self._limit).astype(np.float32)
        return boxes


def calibrated(scores_N: Array, labels_N: Array, maps: CalibrationRule | None) -> Array:
    """Return sigmoid(logit(score) / temperature + bias), without a logarithm of 0."""
    if maps is None:
        return scores_N
    slopes_N = 1 / np.array(maps["temperatures"], np.float32)[labels_N]
    rises_N = np.exp(np.array(maps["biases"], np.float32))[labels_N] * scores_N**slopes_N
    found: Array = rises_N / (rises_N + (1 - scores_N) ** slopes_N)
    return found


def of_head(scores_N: Array, labels_N: Array, maps: CalibrationRule | None) -> Array:
    """Return the scores that become these: the inverse of `calibrated`."""
    if maps is None:
        return scores_N
    pairs = list(zip(maps["temperatures"], maps["biases"], strict=True))
    inverse: CalibrationRule = {
        "temperatures": [1 / temperature for temperature, _ in pairs],
        "biases": [-temperature * bias for temperature, bias in pairs],
    }
    return calibrated(scores_N, labels_N, inverse)


def suppressed(
    boxes_xyxy: Array, scores: Array, iou_limit: float, labels: Array | None = None
) -> Array:
    """Return the rows that greedy suppression keeps, best first; with labels, class by class."""
    order = np.argsort(-scores, kind="stable")
    boxes = boxes_xyxy[order].astype(np.float64)
    if labels is not None and len(boxes):
        boxes = boxes + labels[order][:, None] * (boxes.max() + 1)
    rows: Array = order[nms(boxes, iou_limit, len(order))]
    return rows


def overlaps(a_N4: Array, b_M4: Array) -> Array:
    """Return the IoU of every pair of boxes, [N, M]."""
    sides = np.minimum(a_N4[:, None, 2:], b_M4[None, :, 2:]) - np.maximum(
        a_N4[:, None, :2], b_M4[None, :, :2]
    )
    inner = np.prod(np.clip(sides, 0, None), -1)
    areas = [np.prod(np.clip(b[:, 2:] - b[:, :2], 0, None), -1) for b in (a_N4, b_M4)]
    found: Array = inner / np.maximum(areas[0][:, None] + areas[1][None] - inner, 1e-9)
    return found


def nms(boxes_xyxy: Array, iou_limit: float, keep: int) -> Array:
    """Return the rows that greedy suppression keeps; boxes are given best first."""
    x0, y0, x1, y1 = boxes_xyxy.T
    areas = np.maximum(x1 - x0, 0) * np.maximum(y1 - y0, 0)
    alive = np.ones(len(boxes_xyxy), dtype=bool)
    kept: list[int] = []
    for row in range(len(boxes_xyxy)):
        if not alive[row]:
            continue
        kept.append(row)
        if len(kept) == keep:
            break
        wide = np.minimum(x1[row], x1) - np.maximum(x0[row], x0)
        tall = np.minimum(y1[row], y1) - np.maximum(y0[row], y0)
        overlap = np.maximum(wide, 0) * np.maximum(tall, 0)
        union = np.maximum(areas[row] + areas - overlap, 1e-9)
        alive &= overlap / union <= iou_limit
    return np.array(kept, dtype=np.int64)
