"""Calibrated scores of selected detections, in torch and as the last nodes of a graph.

sigmoid(logit(s) / T + b) is u / (u + v) with u = e^b s^(1/T) and v = (1 - s)^(1/T), which needs no
logarithm of 0: a score of 0 stays 0, one of 1 stays 1.
"""

import numpy as np
import numpy.typing as npt

from ..boxes import Detections
from ..data.score_calibration import ScoreCalibration
from .nodes import Value
from .writer import GraphWriter


def calibrated(found: Detections, calibration: ScoreCalibration | None) -> Detections:
    """Return detections with calibrated scores; without a calibration as they are."""
    if calibration is None:
        return found
    scores, labels = found.scores, found.labels
    slope = 1 / scores.new_tensor(calibration.temperatures)[labels]
    rises = scores.new_tensor(calibration.biases)[labels].exp() * scores**slope
    scores, order = (rises / (rises + (1 - scores) ** slope)).sort(descending=True, stable=True)
    return Detections(found.boxes_xyxy[order], scores, labels[order])


def emit_calibrated(
    graph: GraphWriter, scores: Value, labels: Value, calibration: ScoreCalibration | None
) -> Value:
    """Write calibrated scores, in the order that they have; scores and labels are of one shape."""
    if calibration is None:
        return scores

    def of_class(values: npt.NDArray[np.float64]) -> Value:
        table = graph.const(values.astype(np.float32))
        return graph.op("Gather", [table, labels], labels.shape, axis=0)

    def pair(kind: str, a: Value, b: Value) -> Value:
        return graph.op(kind, [a, b], scores.shape)

    slope = of_class(1 / np.array(calibration.temperatures))
    rises = pair("Mul", of_class(np.exp(calibration.biases)), pair("Pow", scores, slope))
    falls = pair("Pow", pair("Sub", graph.scalar(1.0), scores), slope)
    return pair("Div", rises, pair("Add", rises, falls))
