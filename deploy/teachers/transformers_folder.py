"""A detector in a folder of the transformers library (`save_pretrained`), run in torch."""

import importlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from supernet.data.evaluate import Found
from supernet.errors import UserError
from supernet.letterbox import Image

from ..edge.session import Array
from .inputs import InputRule, read_json, stated_fit, stated_values, to_image
from .names import in_order
from .outputs import Outputs, read, recognised


class TransformersDetector:
    """Finds objects with a transformers model that has logits and pred_boxes."""

    def __init__(self, folder: Path) -> None:
        """Load model and preprocessing; nothing is downloaded."""
        try:
            transformers = importlib.import_module("transformers")
        except ImportError:
            raise UserError(f"{folder} needs transformers: pip install transformers") from None
        try:
            model: Any = transformers.AutoModelForObjectDetection.from_pretrained(
                str(folder), local_files_only=True
            )
        except Exception as error:  # whatever the model's code raises
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{folder} holds no detector for transformers: {reason}") from None
        self._model = model.float().eval()  # as its inputs are; folders may be saved in f16
        file = folder / "config.json"
        self.names = in_order(model.config.id2label, f"{file}: id2label", "correct it there")
        processor = read_json(folder / "preprocessor_config.json")
        if processor is None:
            raise UserError(f"{folder} has no preprocessor_config.json: save its processor there")
        self._rule = InputRule(stated_fit(processor), stated_values(processor))

    def __str__(self) -> str:
        """Return what was found, for a log line."""
        return type(self._model).__name__

    def detect(self, images: Sequence[Image]) -> Iterator[Found]:
        """Find the objects of each image: boxes in its pixels, scores, class indices.

        Images whose inputs are of one size run together.
        """
        prepared = [self._rule.prepare(image) for image in images]
        for _, run in groupby(range(len(images)), lambda index: prepared[index][0].shape):
            rows = list(run)
            found = self._run(np.concatenate([prepared[row][0] for row in rows]))
            for index, row in enumerate(rows):
                outputs = {name: array[index : index + 1] for name, array in found.items()}
                (pixels, ratio), image_hw = prepared[row], images[row].shape[:2]
                format = recognised(outputs, len(self.names))
                hw = (pixels.shape[2], pixels.shape[3])
                boxes, scores, labels = read(format, outputs, hw, len(self.names))
                yield to_image(boxes, ratio, image_hw), scores, labels

    def _run(self, pixels: Array) -> Outputs:
        with torch.inference_mode():
            found = self._model(pixel_values=torch.from_numpy(pixels))
        return {
            name: np.asarray(found[name].float())
            for name in ("logits", "pred_boxes")
            if name in found
        }
