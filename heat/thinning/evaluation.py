"""Loss and AP of a state of the supernet on held-out images (spec section 10).

Each evaluation inherits the weights, recalibrates BatchNorm and runs images that the supernet was
not trained on. All are kept in a journal, so that a search that was killed goes on with them.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from supernet.boxes import Detections
from supernet.data.augment import AugmentConfig
from supernet.data.coco_file import ResultRow
from supernet.data.detection_set import DetectionSet, Record, evenly
from supernet.data.evaluate import Found, result_rows, score_rows
from supernet.data.ground_truth import GroundTruth
from supernet.data.image_files import content_digest
from supernet.data.labelled_image import load_image
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.fake_quant import simulate_int8
from supernet.heatdetr.inherit import inherit, kept_channels
from supernet.heatdetr.recalibrate import recalibrate
from supernet.heatdetr.supernet import SearchSpace, Supernet
from supernet.letterbox import boxes_to_image, boxes_to_input, letterbox, scale_to_fit
from supernet.train.aligned import training_loss
from supernet.train.feed import batch_starts
from supernet.train.shown import shown_in_training

from .journal import Journal
from .moves import Logits, State

HOLD_OUT_EVERY = 8
"""Every so many training images one is kept out of the supernet's training, for losses."""
MAX_HELD_OUT = 48
"""Held-out images that losses and AP are computed on, at most."""
UNLABELLED = 64
"""Training images for BatchNorm statistics, as training shows them, and for the distance of
features, as they are."""
BATCH = 8
MIN_AP = 1.0
"""AP of the whole supernet, in points, below which AP on few images is noise."""
HALF = {"bf16": torch.bfloat16, "f16": torch.float16}


def split_held_out(data: DetectionSet) -> tuple[DetectionSet, DetectionSet]:
    """Split a training set into the supernet's part and the calibration part."""
    kept = [r for i, r in enumerate(data.records) if i % HOLD_OUT_EVERY]
    held = [r for i, r in enumerate(data.records) if i % HOLD_OUT_EVERY == 0]
    return data.of(kept or held), data.of(held)


def evaluated_on(data: DetectionSet) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Return the images without labels, and those that losses and AP are computed on."""
    train, held = split_held_out(data)
    return tuple(evenly(train.records, UNLABELLED)), tuple(evenly(held.records, MAX_HELD_OUT))


def images_digest(data: DetectionSet) -> str:
    """Return a hash of the files that evaluations of a set depend on.

    The set's own digest knows their sizes in bytes only: an image that was corrected may have the
    same, and INT8 is calibrated on what it shows.
    """
    return content_digest(record.path for part in evaluated_on(data) for record in part)


def load_batches(
    records: Sequence[Record], input_hw: tuple[int, int]
) -> Iterator[tuple[Tensor, list[GroundTruth]]]:
    """Yield letterboxed batches without augmentation; a last one of few joins the one before.

    BatchNorm cannot be recalibrated on a batch of one.
    """
    starts = batch_starts(len(records), BATCH)
    for start, stop in zip(starts, [*starts[1:], len(records)], strict=True):
        images, targets = [], []
        for record in records[start:stop]:
            image = load_image(record)
            pixels, scale = letterbox(image.pixels, input_hw)
            images.append(torch.from_numpy(pixels))
            hw = (image.pixels.shape[0], image.pixels.shape[1])
            boxes = torch.from_numpy(boxes_to_input(image.boxes_xyxy, scale, hw))
            targets.append(GroundTruth(boxes, torch.from_numpy(image.labels)))
        yield torch.stack(images), targets


class Evaluations:
    """Evaluates states of a supernet on held-out images."""

    def __init__(
        self,
        supernet: Supernet,
        space: SearchSpace,
        data: DetectionSet,
        logits: Logits,
        journal: Journal | None = None,
        *,
        scored: DetectionSet | None = None,
        augment: AugmentConfig | None = None,
    ) -> None:
        """Load the images once; `space` is the supernet's, its global block decided.

        Statistics of BatchNorm are those of images as the supernet's training showed them, by
        `augment`. Losses and AP are computed on `scored`, or on the held-out part of the training
        data.
        """
        size = space.template.input_size
        unlabelled, held = evaluated_on(data)
        self._supernet, self._space, self._logits = supernet, space, logits
        self._journal = Journal(None, "") if journal is None else journal
        self._unlabelled = [images for images, _ in load_batches(unlabelled, size)]
        self._shown = list(
            shown_in_training(
                data.of(unlabelled), size, augment or AugmentConfig(), len(unlabelled)
            )
        )
        self._data = scored or data.of(held)
        self._held = list(load_batches(self._data.records, size))
        self._network: tuple[State, Detector] | None = None
        self._features: dict[State, list[Tensor]] = {}

    @property
    def images(self) -> int:
        """Number of held-out images that losses and AP are computed on."""
        return len(self._data.records)

    def loss(self, state: State) -> float:
        """Return the mean detection loss on the held-out images."""
        return self._both(state)[0]

    def ap(self, state: State) -> float:
        """Return AP on the held-out images, in points of 100."""
        return self._both(state)[1]

    def loss_rise(self, before: State, after: State) -> float:
        """Return the rise of the loss from one state to the next, in percent (proxy a)."""
        base = self.loss(before)
        return 100.0 * (self.loss(after) - base) / base

    def distance(self, before: State, after: State) -> float:
        """Return 1 - cosine of s_out, t_cls and t_reg, in points of 100 (proxy b).

        Channels that one of the networks lacks count as zeros in the supernet's width.
        """
        key = f"distance {self._name(before)} -> {self._name(after)}"
        return float(self._journal.value(key, lambda: self._distance(before, after)))

    def ap_drop(self, before: State, after: State) -> float:
        """Return the AP lost from one state to the next, in points of 100 (d)."""
        return self.ap(before) - self.ap(after)

    def quality(self, state: State, precision: str) -> tuple[float, float]:
        """Return detection loss, and AP in points of 100, in a precision.

        Half precision is computed by autocast, INT8 is simulated: weights of each output channel
        and inputs of each layer are quantized to 8 bits.
        """
        if precision == "f32":
            return self._both(state)
        key = f"{precision}: loss, AP {self._name(state)}"
        loss, ap = self._journal.value(key, lambda: self._evaluate(state, precision))
        return float(loss), float(ap)

    @property
    def ap_is_informative(self) -> bool:
        """Whether the whole supernet detects well enough for AP on few images to mean anything."""
        return self.ap(State.full(self._space)) >= MIN_AP

    def network(self, state: State) -> Detector:
        """Return the network of a state, its BatchNorm recalibrated."""
        if self._network is None or self._network[0] != state:
            architecture = state.architecture(self._space, self._logits)
            network = inherit(self._supernet, architecture, state.positions())
            recalibrate(network, self._shown)
            self._network = (state, network)
        return self._network[1]

    def _name(self, state: State) -> str:
        architecture = state.architecture(self._space, self._logits)
        size = "x".join(map(str, self._space.template.input_size))
        block = f" {state.global_block}" if state.global_block else ""
        return f"{size} {architecture.widths} {architecture.blocks} {state.positions()}{block}"

    def _both(self, state: State) -> tuple[float, float]:
        found = self._journal.value(f"loss, AP {self._name(state)}", lambda: self._evaluate(state))
        return float(found[0]), float(found[1])

    @torch.no_grad()
    def _evaluate(self, state: State, precision: str = "f32") -> list[float]:
        network = self.network(state)
        if precision == "int8":
            network = simulate_int8(network, self._unlabelled[:2])
        half = HALF.get(precision)
        total = 0.0
        rows: list[ResultRow] = []
        records = iter(self._data.records)
        for images, targets in self._held:
            with torch.autocast("cpu", half, enabled=half is not None):
                logits, deltas = network(images)
            logits, deltas = logits.float(), deltas.float()
            loss = training_loss((logits, deltas), targets, network.decode, "uniform")
            total += float(loss.total) * len(images)
            for found in network.decode(logits, deltas):
                record = next(records)
                rows += result_rows(record, self._to_image(record, found), self._data)
        ap = score_rows(rows, self._data).ap
        return [total / self.images, 100.0 * max(0.0, ap)]

    def _to_image(self, record: Record, found: Detections) -> Found:
        """Return detections in pixels of the stored image."""
        stored = (record.height, record.width)
        scale = scale_to_fit(stored, self._space.template.input_size)
        boxes = boxes_to_image(found.boxes_xyxy.numpy(), scale, stored)
        return boxes, found.scores.numpy(), found.labels.numpy()

    def _distance(self, before: State, after: State) -> float:
        if before not in self._features:
            self._features = {before: self._feature_maps(before)}
        cosines = [
            torch.cosine_similarity(a.flatten(), b.flatten(), dim=0)
            for a, b in zip(self._features[before], self._feature_maps(after), strict=True)
        ]
        return 100.0 * max(0.0, 1.0 - float(torch.stack(cosines).mean()))

    @torch.no_grad()
    def _feature_maps(self, state: State) -> list[Tensor]:
        """Return s_out, t_cls and t_reg on the unlabelled images in the supernet's channels."""
        network = self.network(state)
        architecture = state.architecture(self._space, self._logits)
        channels = kept_channels(self._supernet, architecture, state.positions())[3]
        seen: list[tuple[Tensor, ...]] = []

        def see(module: nn.Module, inputs: tuple[Tensor, ...], output: object = None) -> None:
            seen.append(inputs if output is None else (cast(Tensor, output),))

        hooks = [
            network.units["scm_global2"].register_forward_hook(see),
            network.units["head"].register_forward_pre_hook(see),
        ]
        for images in self._unlabelled:
            network(images)
        for hook in hooks:
            hook.remove()
        # Each pass saw (s_out), then (t_cls, t_reg).
        passes = [(*seen[i], *seen[i + 1]) for i in range(0, len(seen), 2)]
        maps = []
        for parts in zip(*passes, strict=True):
            narrow = torch.cat(parts)
            wide = narrow.new_zeros(len(narrow), self._space.widths[3], *narrow.shape[2:])
            wide[:, channels] = narrow
            maps.append(wide)
        return maps
