"""`heat eval`: COCO average precision of a bundle, or of the torch checkpoint."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from deploy.detect import Bundle
from deploy.export import write_card
from deploy.gate import torch_detect
from supernet.coco import DetectionSet
from supernet.evaluate import (
    Detect,
    Found,
    Metrics,
    confusion_matrix,
    found_rows,
    score,
)
from supernet.letterbox import Image

from ..learning import draw_confusion, draw_precision
from ..workspace import Workspace
from .export import Change, as_it_is, load_network


def evaluate_bundle(workspace: Workspace, folder: Path, data: DetectionSet) -> dict[str, Any]:
    """Score an exported bundle on a split and write the result into its card."""
    with Bundle(folder) as bundle:
        data = data.numbered_as(bundle.names)

        def detect(image: Image) -> Found:
            found = bundle.detect(image, score=0.0)  # AP is of all detections
            return found.boxes_xyxy_px, found.scores, found.labels

        result = _scored(workspace, detect, data, str(folder), bundle.card["runtime"])
    keys = [entry.name for entry in fields(Metrics)]
    accuracy = {**{key: result[key] for key in keys}, "data": data.root.name, "split": data.split}
    write_card(folder, {**bundle.card, "accuracy": accuracy})
    return result


def evaluate_checkpoint(
    workspace: Workspace, data: DetectionSet, change: Change = as_it_is
) -> dict[str, Any]:
    """Score the workspace's network in torch."""
    network, names, _ = load_network(workspace, change)
    numbered = data.numbered_as(names)
    return _scored(workspace, torch_detect(network), numbered, str(workspace.train), "torch")


def _scored(
    workspace: Workspace, detect: Detect, data: DetectionSet, model: str, runtime: str
) -> dict[str, Any]:
    """Score, draw what was found right and wrong, and record it."""
    rows = found_rows(detect, data)
    scores = score(rows, data)
    precision, confusion = (
        workspace.root / "eval" / name for name in ("precision.svg", "confusion.svg")
    )
    result = {
        **scores.metrics.rounded(),
        "data": str(data.root),
        "split": data.split,
        "scored": model,
        "runtime": runtime,
        "scored_by": scores.by,
        "precision_picture": str(precision),
        "confusion_picture": str(confusion),
    }
    workspace.record("eval", result)  # before drawing: the score is what took the time
    draw_precision(scores, data.names, precision)
    draw_confusion(confusion_matrix(rows, data), data.names, confusion)
    return result
