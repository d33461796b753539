"""The ways in which detectors write their results, and how each is read.

| format | outputs |
|---|---|
| detr-softmax | logits [1, Q, K + 1], the last for nothing, and boxes [1, Q, 4] cxcywh in shares |
| detr-sigmoid | logits [1, Q, K] and boxes [1, Q, 4] cxcywh in shares |
| yolo | rows [1, 4 + K, N] or [1, N, 4 + K]: cxcywh in input pixels, scores |
| yolo-objectness | the same with an objectness before the scores, which it multiplies |
| nms | rows [1, N, 6]: xyxy in input pixels, score, class |
| boxes | boxes [1, N, 4] xyxy in input pixels, scores [1, N] and labels [1, N] |

Raw rows pass class-wise NMS here. Shape suffixes: N rows, Q queries, K classes.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from supernet.data.evaluate import Found
from supernet.errors import UserError

from ..edge.postprocess import suppressed
from ..edge.session import Array
from .asked import Format

LEAST_SCORE = 0.05
"""Detections of lower scores are dropped."""
MOST = 300
"""Most detections of an image; DETRs have as many queries."""
NMS_IOU = 0.6

Outputs = Mapping[str, Array]
"""By name, of one image."""


def recognised(outputs: Outputs, num_classes: int) -> Format:
    """Return the format of a model's outputs; raise `UserError` where none fits, or several do."""
    if _separate(outputs) is not None:
        return "boxes"
    K = num_classes
    logits = [] if _boxes(outputs) is None else _logits(outputs)
    widths = {array.shape[-1] for array in logits}
    if widths & {K, K + 1}:
        return "detr-sigmoid" if K in widths else "detr-softmax"
    rows = _rows(outputs)
    fits: list[Format] = []
    if rows is not None:
        columns = min(rows.shape[1:])  # there are more rows than classes
        fits += ["nms"] if columns == 6 == rows.shape[2] else []
        fits += ["yolo"] if columns == 4 + K else []
        fits += ["yolo-objectness"] if columns == 5 + K else []
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise UserError(f"{described(outputs)} may be {' or '.join(fits)}: give --teacher-format")
    raise UserError(
        f"{described(outputs)}: none of the known outputs for {K} classes: another number of class "
        "names (--teacher-names), or name it by --teacher-format"
    )


def read(format: Format, outputs: Outputs, input_hw: tuple[int, int], num_classes: int) -> Found:
    """Return boxes xyxy in pixels of the input, scores and labels, best first.

    Raises `UserError` for outputs of another format or number of classes, and for NaN.
    """
    K = num_classes
    if format == "boxes":
        separate = _separate(outputs)
        if separate is None:
            raise UserError(f"{described(outputs)}: no boxes, scores and labels, one of each")
        boxes_N4, scores_N, labels_N = separate
    elif format in ("detr-softmax", "detr-sigmoid"):
        boxes_N4, scores_N, labels_N = _read_detr(outputs, format == "detr-softmax", input_hw, K)
    else:
        boxes_N4, scores_N, labels_N = _read_rows(outputs, format, K)
    if not (np.isfinite(boxes_N4).all() and np.isfinite(scores_N).all()):
        raise UserError(
            "the teacher gives NaN or infinity: another --teacher-norm, or a broken file"
        )
    kept = np.argsort(-scores_N, kind="stable")[:MOST]
    kept = kept[scores_N[kept] >= LEAST_SCORE]
    labels = labels_N[kept].astype(np.int64)
    if len(labels) and not (labels.min() >= 0 and labels.max() < K):
        raise UserError(
            f"the teacher finds class {labels.max()}, its names are {K}: --teacher-names"
        )
    return boxes_N4[kept].astype(np.float32), scores_N[kept].astype(np.float32), labels


def described(outputs: Outputs) -> str:
    """Return names and shapes of outputs in words."""
    shapes = (f"{name} {list(array.shape)}" for name, array in outputs.items())
    return f"outputs {', '.join(shapes)}"


def _read_detr(
    outputs: Outputs, softmax: bool, input_hw: tuple[int, int], K: int
) -> tuple[Array, Array, Array]:
    """Return every query with every class; DETR's first design takes one class a query."""
    width = K + softmax
    logits = next((a for a in _logits(outputs) if a.shape[-1] == width), None)
    boxes = _boxes(outputs)
    if logits is None or boxes is None:
        raise UserError(f"{described(outputs)}: no logits [1, Q, {width}] and boxes [1, Q, 4]")
    logits_QK = logits[0].astype(np.float64)
    if softmax:
        power = np.exp(logits_QK - logits_QK.max(-1, keepdims=True))
        scores_QK = (power / power.sum(-1, keepdims=True))[:, :K]
        rows, labels = np.arange(len(scores_QK)), scores_QK.argmax(-1)
    else:
        scores_QK = 1 / (1 + np.exp(-logits_QK))
        rows, labels = (index.ravel() for index in np.indices(scores_QK.shape))
    unit = np.array(input_hw[::-1], dtype=np.float64)
    return (
        _corners(boxes[0].astype(np.float64) * np.tile(unit, 2))[rows],
        scores_QK[rows, labels],
        labels,
    )


def _read_rows(outputs: Outputs, format: Format, K: int) -> tuple[Array, Array, Array]:
    rows = _rows(outputs)
    if rows is None:
        raise UserError(f"{described(outputs)}: one output of three axes is needed")
    rows_NC = rows[0].astype(np.float64)
    width = {"nms": 6, "yolo": 4 + K, "yolo-objectness": 5 + K}[format]
    if rows_NC.shape[1] != width and format != "nms":
        rows_NC = rows_NC.T
    if rows_NC.shape[1] != width:
        raise UserError(f"{described(outputs)}: {format} of {K} classes has {width} columns")
    if format == "nms":
        return rows_NC[:, :4], rows_NC[:, 4], np.round(np.nan_to_num(rows_NC[:, 5]))
    scores_NK = rows_NC[:, -K:] * (rows_NC[:, 4:5] if format == "yolo-objectness" else 1.0)
    labels = scores_NK.argmax(-1)
    scores = scores_NK.max(-1)
    able = ~(scores < LEAST_SCORE)  # NaN is kept, to be refused
    boxes, scores, labels = _corners(rows_NC[able, :4]), scores[able], labels[able]
    if np.isfinite(boxes).all() and np.isfinite(scores).all():
        kept = suppressed(boxes, scores, NMS_IOU, labels)
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
    return boxes, scores, labels


def _corners(boxes_cxcywh: Array) -> Array:
    half = boxes_cxcywh[:, 2:] / 2
    return np.concatenate([boxes_cxcywh[:, :2] - half, boxes_cxcywh[:, :2] + half], 1)


def _separate(outputs: Outputs) -> tuple[Array, Array, Array] | None:
    """Return boxes [N, 4], scores [N] and labels [N], where outputs have these names and shapes."""
    found: list[Array] = []
    for word, sides in (("box", 2), ("score", 1), ("label", 1)):
        named = [array for name, array in outputs.items() if word in name.lower()]
        if len(named) != 1:
            return None
        array = named[0]
        array = array[0] if array.ndim == sides + 1 and len(array) == 1 else array
        if array.ndim != sides:
            return None
        found.append(array)
    boxes, scores, labels = found
    if boxes.shape[1:] != (4,) or not len(boxes) == len(scores) == len(labels):
        return None
    return boxes, scores, labels


def _logits(outputs: Outputs) -> Sequence[Array]:
    """Return the outputs that may be logits: those of that name, or all that are not boxes."""
    boxes = _boxes(outputs)
    others = {
        name: array
        for name, array in outputs.items()
        if array is not boxes and array.ndim == 3 and boxes is not None
        and array.shape[:2] == boxes.shape[:2]
    }  # fmt: skip
    named = [array for name, array in others.items() if "logit" in name.lower()]
    return named or list(others.values())


def _boxes(outputs: Outputs) -> Array | None:
    """Return the output [1, Q, 4]; of several that with boxes in its name."""
    fitting = {n: a for n, a in outputs.items() if a.ndim == 3 and a.shape[::2] == (1, 4)}
    named = [array for name, array in fitting.items() if "box" in name.lower() or "det" in name]
    found = named or list(fitting.values())
    return found[0] if len(found) == 1 else None


def _rows(outputs: Outputs) -> Array | None:
    """Return the one output of three axes, or the first: YOLO's others are maps of masks."""
    found = [array for array in outputs.values() if array.ndim == 3 and len(array) == 1]
    return found[0] if found else None
