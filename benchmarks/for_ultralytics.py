"""What ultralytics needs here: a detection set in its format, and to be imported on a CPU."""

import importlib.metadata
import importlib.util
import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from supernet.data.detection_set import DetectionSet


def is_yolo(name: str) -> bool:
    """Return whether ultralytics has a model."""
    return name.startswith("yolo") and not name.startswith("yolos")


def allow_no_torchvision() -> None:
    """Make ultralytics importable without torchvision, which may have no build for a CPU torch.

    It reads torchvision's version and imports its NMS, of which it has its own implementation.
    """
    if importlib.util.find_spec("torchvision") is not None:
        return
    version = importlib.metadata.version
    fitting = f"0.{int(torch.__version__.split('.')[1]) + 15}.0"

    def version_of(name: str) -> str:
        return fitting if name == "torchvision" else version(name)

    def nms(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
        from ultralytics.utils.nms import TorchNMS

        return TorchNMS.nms(boxes, scores, iou)  # type: ignore[no-any-return]

    importlib.metadata.version = version_of
    sys.modules["torchvision"] = types.ModuleType("torchvision")
    sys.modules["torchvision"].ops = types.SimpleNamespace(nms=nms)  # type: ignore[attr-defined]


def write_yolo(folder: Path, splits: dict[str, DetectionSet]) -> Path:
    """Write sets in YOLO format, the images as links."""
    shutil.rmtree(folder, ignore_errors=True)
    for split, data in splits.items():
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for record in data.records:
            (images / record.path.name).symlink_to(record.path.resolve())
            unit = np.array([record.width, record.height] * 2)
            x0, y0, x1, y1 = (record.boxes_xyxy / unit).T
            columns = [record.labels, (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
            lines = [
                f"{k:.0f} {' '.join(f'{v:.6f}' for v in box)}"
                for k, *box in zip(*columns, strict=True)
            ]
            (labels / f"{record.path.stem}.txt").write_text("\n".join(lines))
    names = next(iter(splits.values())).names
    config = folder / "data.yaml"
    head = f"path: {folder.resolve()}\ntrain: images/train\nval: images/val\n"
    config.write_text(f"{head}names: {json.dumps(names)}\n")
    return config
