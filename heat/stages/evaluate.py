"""`heat eval`: COCO average precision of a bundle, or of the torch checkpoint."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deploy.detect import Bundle
from deploy.export import write_card
from supernet.coco import DetectionSet
from supernet.errors import DataError
from supernet.evaluate import Found, Metrics, evaluate
from supernet.letterbox import Image, boxes_to_image, letterbox

from ..workspace import Workspace
from .export import load_network


def evaluate_bundle(workspace: Workspace, folder: Path, data: DetectionSet) -> dict[str, Any]:
    """Score an exported bundle on a split and write the result into its card."""
    bundle = Bundle(folder)
    _check_names(bundle.names, data)

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
    _check_names(names, data)
    network = network.deployed()
    size = network.architecture.input_size

    @torch.no_grad()
    def detect(image: Image) -> Found:
        pixels, scale = letterbox(image, size)
        found = network.detect(torch.from_numpy(pixels)[None])[0]
        boxes = boxes_to_image(found.boxes_xyxy.numpy(), scale, image.shape[:2])
        return boxes, found.scores.numpy(), found.labels.numpy().astype(np.int64)

    metrics = evaluate(detect, data)
    return _recorded(workspace, metrics, data, str(workspace.train), "torch")


def _check_names(names: list[str], data: DetectionSet) -> None:
    if tuple(names) != data.names:
        raise DataError(
            f"{data.annotation_path} has classes {', '.join(data.names[:5])} ..., the model has "
            f"{', '.join(names[:5])} ...: evaluate on the data it was trained for"
        )


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
