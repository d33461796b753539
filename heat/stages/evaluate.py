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
    check_names,
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
    bundle = Bundle(folder)
    check_names(bundle.names, data)

    def detect(image: Image) -> Found:
        found = bundle.detect(image)
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
    check_names(names, data)
    return _scored(workspace, torch_detect(network), data, str(workspace.train), "torch")


def _scored(
    workspace: Workspace, detect: Detect, data: DetectionSet, model: str, runtime: str
) -> dict[str, Any]:
    """Score, draw what was found right and wrong, and record it."""
    rows = found_rows(detect, data)
    scores = score(rows, data)
    folder = workspace.root / "eval"
    counts = confusion_matrix(rows, data)
    result = {
        **scores.metrics.rounded(),
        "data": str(data.root),
        "split": data.split,
        "scored": model,
        "runtime": runtime,
        "scored_by": scores.by,
        "precision_picture": str(draw_precision(scores, data.names, folder / "precision.svg")),
        "confusion_picture": str(draw_confusion(counts, data.names, folder / "confusion.svg")),
    }
    return workspace.record("eval", result)
