"""AP_drop of a move: what is lost when a part of the supernet goes (spec section 10).

Two readings: the detection loss of the cut network on held-out images, and, without training or
data, the share of importance mass removed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from supernet.coco import DetectionSet, Record
from supernet.errors import DataError
from supernet.inherit import inherit
from supernet.letterbox import letterbox, read_image
from supernet.loss import Target, detection_loss
from supernet.recalibrate import recalibrate
from supernet.supernet import SearchSpace, Supernet

from .thinning import Logits, State

HOLD_OUT_EVERY = 8
"""Every so many training images one is kept out of the supernet's training, to read losses on."""
MAX_LOSS_IMAGES = 48
RECALIBRATION_IMAGES = 64
BATCH = 8


def split_held_out(data: DetectionSet) -> tuple[DetectionSet, DetectionSet]:
    """Split a training set into the supernet's part and the calibration part."""
    kept = tuple(r for i, r in enumerate(data.records) if i % HOLD_OUT_EVERY)
    held = tuple(r for i, r in enumerate(data.records) if i % HOLD_OUT_EVERY == 0)
    return replace(data, records=kept or held), replace(data, records=held)


def load_batches(
    records: Sequence[Record], input_hw: tuple[int, int]
) -> Iterator[tuple[Tensor, list[Target]]]:
    """Yield letterboxed batches without augmentation."""
    for start in range(0, len(records), BATCH):
        images, targets = [], []
        for record in records[start : start + BATCH]:
            image = read_image(record.path, (record.height, record.width))
            if image is None:
                raise DataError(f"cannot decode {record.path}: see heat data check")
            pixels, scale = letterbox(image, input_hw)
            images.append(torch.from_numpy(pixels))
            boxes = torch.from_numpy(record.boxes_xyxy * np.float32(scale))
            targets.append(Target(boxes, torch.from_numpy(record.labels)))
        yield torch.stack(images), targets


class LossDrop:
    """AP_drop by detection loss: the relative rise of the loss, in percent.

    Each reading inherits the weights, recalibrates BatchNorm and runs the held-out images.
    """

    def __init__(
        self, supernet: Supernet, space: SearchSpace, data: DetectionSet, logits: Logits
    ) -> None:
        """Load the images once; `space` is the supernet's, its global block decided."""
        size = supernet.architecture.input_size
        train, held = split_held_out(data)
        self._supernet, self._space, self._logits = supernet, space, logits
        self._recalibration = [
            images for images, _ in load_batches(train.records[:RECALIBRATION_IMAGES], size)
        ]
        self._held = list(load_batches(held.records[:MAX_LOSS_IMAGES], size))
        self._known: dict[tuple[object, object], float] = {}

    def __call__(self, before: State, after: State) -> float:
        """Return the rise of the loss from one state to the next, in percent."""
        base = self.loss(before)
        return 100.0 * (self.loss(after) - base) / base

    @torch.no_grad()
    def loss(self, state: State) -> float:
        """Return the detection loss of a state on the held-out images."""
        architecture = state.architecture(self._space, self._logits)
        key = (architecture, state.positions())
        if key not in self._known:
            network = inherit(self._supernet, architecture, state.positions())
            recalibrate(network, self._recalibration)
            total = 0.0
            for images, targets in self._held:
                logits, deltas = network(images)
                loss = detection_loss(logits, deltas, targets, network.decode)
                total += float(loss.total) * len(images)
            self._known[key] = total / sum(len(images) for images, _ in self._held)
        return self._known[key]
