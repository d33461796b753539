"""Semi-supervised training: the averaged weights label images from which the network learns.

The averaged weights see each image without labels as evaluation does; what they find are the
objects of a strongly augmented view of it, which the network is shown (Liu et al. 2021, Unbiased
Teacher; Xu et al. 2021, Soft Teacher). How much each counts, and how much all of them do, follows
from what the averaged weights find on the labelled images of the same batches: `Trust`. Before they
find enough there, nothing is learnt from the others.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..boxes import Detections
from ..checkpoint import Kind
from ..data.detection_set import DetectionSet
from ..data.ground_truth import GroundTruth
from ..data.two_views import TwoViews
from ..errors import UserError
from ..network import Network
from .distributed import Group, first_process
from .feed import feed_keyed, rare_first, shareable
from .optimise import Averaged, ParameterGroup
from .recipes import TrainConfig
from .task import Batch, Traces, task_of
from .trust import Trust
from .two_sets import TwoSets

READY = 0.3
"""Share of the labelled objects that the averaged weights find before the others are learnt."""


class FoundTruth(GroundTruth):
    """Objects that the averaged weights found."""

    __slots__ = ()


class UnlabelledTask:
    """A detection task, and images without labels whose objects the run itself finds."""

    turns = 1
    turn = 0

    def __init__(self, network: Network, data: DetectionSet, both: DetectionSet) -> None:
        """Train `network` on `data`; `both` has its records, then those without labels."""
        self.labelled = task_of(network, data)
        self.detector, self.data = network, data
        self.others = both.records[len(data.records) :]
        self.digest = both.digest
        self.kind: Kind = self.labelled.kind
        self.description = self.labelled.description
        self.names, self.num_images = data.names, len(data.records)
        self.trust = Trust(data.num_classes)
        self._axis = 0 if network.detr is None else 1  # outputs of DETR's family: layers first
        self._average: Averaged | None = None
        self._group = Group()
        self._epoch = 0
        self._reported = False

    @property
    def network(self) -> nn.Module:
        """The network whose weights are trained and saved."""
        return self.labelled.network

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.labelled.model

    def facts(self) -> dict[str, object]:
        """Return data, split, and numbers of images."""
        return self.labelled.facts() | {"unlabelled": len(self.others)}

    def settings(self) -> Mapping[str, object]:
        """Return those of the labelled images."""
        return self.labelled.settings()

    def traces(self) -> Traces:
        """Return the share of the labelled objects that the averaged weights find."""
        return {"labelled_found": round(self.trust.found(), 4)}

    def begin(self, average: Averaged, group: Group) -> None:
        """Take the averaged weights of the run."""
        if not average.decay:
            raise UserError(
                "--unlabelled: the recipe keeps no averaged weights, which would label the images: "
                "--recipe small does, or give --teacher DETECTOR"
            )
        self._average, self._group = average, group

    def state(self) -> Mapping[str, Tensor]:
        """Return what a resumed run goes on from."""
        return self.trust.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        self.trust.load_state(state)
        self._reported = self.trust.found() >= READY

    def start_epoch(self, epoch: float, epochs: int) -> None:
        """Note the epoch, for a log line."""
        self._epoch = round(epoch)
        self.labelled.start_epoch(epoch, epochs)

    def warn_of_nothing_learnt(self) -> None:
        """Print a warning where a finished run has not learnt from the images without labels."""
        found = self.trust.found()
        if found < READY:
            print(
                f"warning: the images without labels were not learnt from: at the end the averaged "
                f"weights find {found:.0%} of the labelled objects, {READY:.0%} are needed: more "
                "--epochs, or a --teacher",
                file=sys.stderr,
            )

    def parameter_groups(self, config: TrainConfig) -> list[ParameterGroup]:
        """Return the network's parameters with their weight decays and learning rates."""
        return self.labelled.parameter_groups(config)

    def feed(
        self, config: TrainConfig, epochs: range, group: Group, workers: int, skip: int
    ) -> Iterator[Batch]:
        """Yield augmented batches, half of them without labels."""
        sets = [shareable(r) if workers else r for r in (self.data.records, self.others)]
        weights = rare_first(self.data) if config.balanced else None
        yield from feed_keyed(
            TwoSets(sets[0], sets[1], self.labelled.input_size, config, weights),
            config,
            epochs,
            group=group,
            workers=workers,
            skip=skip,
            weights=weights,
            more=len(self.others),
        )

    @torch.no_grad()
    def prepare(self, batch: Batch, config: TrainConfig) -> Batch:
        """Return a batch with what the averaged weights find as labels, or without those images.

        What they find on its labelled images is counted.
        """
        images, targets = batch
        own, others = _rows(targets, GroundTruth), _rows(targets, TwoViews)
        learns = self.trust.found() >= READY
        seen = [images[own]]
        if learns:
            seen += [targets[i].weak_HW3[None] for i in others]
        found = self._find(torch.cat(seen), config)
        self.trust.count(found[: len(own)], [targets[i] for i in own], self._group)
        if not learns:
            return images[own], [targets[i] for i in own]
        if not self._reported and first_process():
            print(
                f"unlabelled: the averaged weights find {READY:.0%} of the labelled objects: what "
                f"they find on the other images is learnt from epoch {self._epoch + 1} on",
                file=sys.stderr,
                flush=True,
            )
        self._reported = True
        targets = list(targets)
        for i, detections in zip(others, found[len(own) :], strict=True):
            targets[i] = self._moved(self.trust.labels(detections), targets[i])
        return images, targets

    def _find(self, images: Tensor, config: TrainConfig) -> list[Detections]:
        """Return what the averaged weights find on images."""
        assert self._average is not None
        outputs = self._average.outputs(self.network, images, config.precision)
        found: list[Detections] = self.detector.decode(*(part.float() for part in outputs[:2]))
        return found

    @staticmethod
    def _moved(found: GroundTruth, views: TwoViews) -> FoundTruth:
        boxes_N4, kept_N = views.moved(found.boxes_xyxy)
        return FoundTruth(boxes_N4, found.labels[kept_N], found.shares[kept_N])

    def loss(
        self, outputs: Sequence[Tensor], targets: Any, config: TrainConfig
    ) -> dict[str, Tensor]:
        """Return the terms of the labels, and those of what the averaged weights found."""
        found = _rows(targets, FoundTruth)
        if not found:
            return self.labelled.loss(outputs, targets, config)
        own = sorted({*range(len(targets))} - {*found})
        terms = self._loss(outputs, targets, own, config)
        weight = self.trust.found()
        for key, value in self._loss(outputs, targets, found, config).items():
            terms[f"unlabelled_{key}"] = weight * value
        return terms

    def _loss(
        self, outputs: Sequence[Tensor], targets: Any, rows: list[int], config: TrainConfig
    ) -> dict[str, Tensor]:
        index = torch.tensor(rows, device=outputs[0].device)
        chosen = [part.index_select(self._axis, index) for part in outputs]
        return self.labelled.loss(chosen, [targets[i] for i in rows], config)


def _rows(targets: Sequence[object], kind: type) -> list[int]:
    return [i for i, target in enumerate(targets) if isinstance(target, kind)]
