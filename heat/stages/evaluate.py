"""`heat eval`: COCO average precision of a bundle, or of the torch checkpoint."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.detect import Bundle
from deploy.export import write_card
from deploy.gate import torch_detect
from supernet.coco import DetectionSet
from supernet.evaluate import Found, Metrics, check_names, evaluate
from supernet.letterbox import Image

from ..workspace import Workspace
from .export import load_network


def evaluate_bundle(workspace: Workspace, folder: Path, data: DetectionSet) -> dict[str, Any]:
    """Score an exported bundle on a split and write the result into its card."""
    bundle = Bundle(folder)
    check_names(bundle.names, data)

    def detect(image: Image) -> Found:
        found = bundle.detect(image)
        return found.boxes_xyxy_px, found.scores, found.labels

    metrics = evaluate(detect, data)
    accuracy = {**_rounded(metrics), "data": data.root.name, "split": data.split}
    write_card(folder, {**bundle.card, "accuracy": accuracy})
    return _recorded(workspace, metrics, data, str(folder), bundle.card["runtime"])


def evaluate_checkpoint(workspace: Workspace, data: DetectionSet) -> dict[str, Any]:
    """Score the workspace's network in torch."""
    network, names, _ = load_network(workspace)
    check_names(names, data)
    metrics = evaluate(torch_detect(network), data)
    return _recorded(workspace, metrics, data, str(workspace.train), "torch")


def _rounded(metrics: Metrics) -> dict[str, Any]:
    return {
        key: round(value, 5) if isinstance(value, float) else value
        for key, value in asdict(metrics).items()
    }


def _recorded(
    workspace: Workspace, metrics: Metrics, data: DetectionSet, model: str, runtime: str
) -> dict[str, Any]:
    result = {
        **_rounded(metrics),
        "data": str(data.root),
        "split": data.split,
        "scored": model,
        "runtime": runtime,
    }
    return workspace.record("eval", result)
