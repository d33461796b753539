"""Tasks: the part of training that differs between networks: data, parameter groups and loss."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol, TypedDict

import torch
from torch import Tensor, nn

from ..attention import Attention
from ..checkpoint import Kind
from ..data.detection_set import DetectionSet
from ..detr.detr import Host
from ..heatdetr.detector import Detector
from ..heatdetr.supernet import Supernet
from ..network import Network
from .aligned import training_loss
from .distributed import Group
from .feed import feed
from .mtkd import Branches, Mtkd, distance
from .optimise import (
    Averaged,
    ParameterGroup,
    logit_group,
    parameter_groups,
    parameter_groups_of_detr,
)
from .recipes import TrainConfig
from .set_loss import DETR, SAM_DETR, set_loss

Batch = tuple[Tensor, Any]
"""Images, uint8 [B, H, W, 3], and their targets."""


class Traces(TypedDict, total=False):
    """What the history records of every epoch beside losses and scores."""

    r: dict[str, list[float]]
    """Selection logits of a supernet, by place."""
    labelled_found: float
    """Share of the labelled objects that the averaged weights find."""


class Task(Protocol):
    """What a network is trained for."""

    kind: Kind
    """Of the checkpoint."""
    description: str
    """JSON of the architecture or the search space."""
    names: tuple[str, ...]
    """Names of the classes."""
    num_images: int
    """Images of an epoch."""
    digest: str
    """Hash of the images and their annotations."""
    turns: int
    """Updates of the weights that a step makes, each by a loss of its own on the same images."""
    turn: int
    """The one that is being made, from 0."""

    @property
    def network(self) -> nn.Module:
        """The network whose weights are trained and saved."""

    @property
    def model(self) -> nn.Module:
        """The module that computes the outputs for `loss`: the network, or a wrapper of it."""

    def facts(self) -> Mapping[str, object]:
        """Return what a checkpoint records of the data and of the search."""

    def settings(self) -> Mapping[str, object]:
        """Return what must be the same for a run to be resumed, besides its `TrainConfig`."""

    def traces(self) -> Traces:
        """Return what the history records of the epoch that ends."""

    def begin(self, average: Averaged, group: Group) -> None:
        """Take the averaged weights of the run, and the processes that share it."""

    def state(self) -> Mapping[str, Tensor]:
        """Return what changes from step to step besides the weights, for a run to be resumed."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state; it is empty for runs of older versions."""

    def start_epoch(self, epoch: float, epochs: int) -> None:
        """Prepare the network for an epoch."""

    def prepare(self, batch: Batch, config: TrainConfig) -> Batch:
        """Return a batch as the network is shown it, with targets as `loss` takes them."""

    def parameter_groups(self, config: TrainConfig) -> list[ParameterGroup]:
        """Return the network's parameters with their weight decays and learning rates."""

    def feed(
        self, config: TrainConfig, epochs: range, group: Group, workers: int, skip: int
    ) -> Iterator[Batch]:
        """Yield this process's share of the batches of some epochs, without the first `skip`."""

    def loss(
        self, outputs: Sequence[Tensor], targets: Any, config: TrainConfig
    ) -> dict[str, Tensor]:
        """Return the terms of the loss by name."""


class Constant:
    """The part of a task that is the same in every step and epoch."""

    turns = 1
    turn = 0

    def settings(self) -> Mapping[str, object]:
        """Return nothing."""
        return {}

    def traces(self) -> Traces:
        """Return nothing."""
        return {}

    def begin(self, average: Averaged, group: Group) -> None:
        """Do nothing."""

    def state(self) -> Mapping[str, Tensor]:
        """Return nothing."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Do nothing."""

    def start_epoch(self, epoch: float, epochs: int) -> None:
        """Do nothing."""

    def prepare(self, batch: Batch, config: TrainConfig) -> Batch:
        """Return the batch."""
        return batch


class _Detection(Constant):
    """The common part of all tasks on a detection set."""

    kind: Kind = "detector"

    def __init__(self, network: Network, data: DetectionSet) -> None:
        self.data, self.input_size = data, network.architecture.input_size
        self.names, self.num_images = data.names, len(data.records)
        self.digest = data.digest
        self.description = network.architecture.to_json()

    def facts(self) -> dict[str, object]:
        """Return data, split and number of images."""
        return {
            "data": self.data.root.name,
            "split": self.data.split,
            "images": self.num_images,
        }

    def feed(
        self, config: TrainConfig, epochs: range, group: Group, workers: int, skip: int
    ) -> Iterator[Batch]:
        """Yield augmented batches."""
        size = self.input_size
        return feed(self.data, size, config, epochs, group=group, workers=workers, skip=skip)


class DetectionTask(_Detection):
    """Detection by a HeatDETR, whose anchors are assigned to objects."""

    def __init__(self, network: Detector, data: DetectionSet) -> None:
        """Train `network` on `data`, whose classes it has."""
        super().__init__(network, data)
        self.network = self.model = network

    def parameter_groups(self, config: TrainConfig) -> list[ParameterGroup]:
        """Return decayed convolutions and undecayed vectors."""
        return parameter_groups(self.network, config)

    def loss(
        self, outputs: Sequence[Tensor], targets: Any, config: TrainConfig
    ) -> dict[str, Tensor]:
        """Return the loss of the classes and of the boxes, of all heads."""
        loss = training_loss(outputs, targets, self.network.decode, config.assign)
        return dict(loss.terms)


class SupernetTask(DetectionTask):
    """Detection by a supernet, which learns its selection logits too."""

    kind: Kind = "supernet"

    def __init__(self, network: Supernet, data: DetectionSet) -> None:
        """Train `network` on `data`, whose classes it has."""
        super().__init__(network, data)
        self.supernet = network
        self._average: Averaged | None = None
        self.description = network.space.to_json()

    def facts(self) -> dict[str, object]:
        """Return data, split and number of images, and the settings of the search."""
        return super().facts() | self.settings()

    def settings(self) -> dict[str, object]:
        """Return the settings of the search."""
        return {"search": asdict(self.supernet.config)}

    def begin(self, average: Averaged, group: Group) -> None:
        """Take the averaged weights of the run, which are those that are thinned."""
        self._average = average

    def traces(self) -> Traces:
        """Return the averaged selection logits, to be drawn over time."""
        own = self._average.weights if self._average is not None else self.supernet.state_dict()
        return {"r": {place: list(r) for place, r in self.supernet.named_logits(own).items()}}

    def start_epoch(self, epoch: float, epochs: int) -> None:
        """Set the temperature of the selection."""
        self.supernet.start_epoch(epoch, epochs)

    def parameter_groups(self, config: TrainConfig) -> list[ParameterGroup]:
        """Return convolutions, vectors, and the selection logits."""
        return [*super().parameter_groups(config), logit_group(self.supernet)]


class SetTask(_Detection):
    """Detection by a network of DETR's family, whose queries are matched with objects."""

    def __init__(self, network: Host, data: DetectionSet) -> None:
        """Train `network` on `data`, whose classes it has."""
        super().__init__(network, data)
        self.network = network
        self.model: nn.Module = network

    def parameter_groups(self, config: TrainConfig) -> list[ParameterGroup]:
        """Return matrices and vectors, of the backbone and of all else."""
        return parameter_groups_of_detr(self.network, config)

    def loss(
        self, outputs: Sequence[Tensor], targets: Any, config: TrainConfig
    ) -> dict[str, Tensor]:
        """Return the set prediction loss, over all decoder layers."""
        weights = SAM_DETR if self.network.decode.focal else DETR
        return set_loss(outputs[0], outputs[1], targets, self.input_size, weights)


class MtkdTask(SetTask):
    """Distillation of a trained DETR, so that it tolerates ACT's clusters."""

    def __init__(self, network: Host, data: DetectionSet, cores: Sequence[Attention]) -> None:
        """Train `network` on `data`; `cores` are the clustered encoder's, one for each layer."""
        super().__init__(network, data)
        self.model = Mtkd(network, cores)

    def loss(
        self, outputs: Sequence[Tensor], targets: Any, config: TrainConfig
    ) -> dict[str, Tensor]:
        """Return the loss of the exact encoder, and the distance of the clustered one's boxes."""
        branches = Branches((outputs[0], outputs[1]), (outputs[2], outputs[3]))
        return super().loss(outputs[:2], targets, config) | {"distance": distance(branches)}


def task_of(network: Network, data: DetectionSet) -> DetectionTask | SetTask:
    """Return the task of training a network to detect the objects of `data`."""
    match network:
        case Supernet():
            return SupernetTask(network, data)
        case Detector():
            return DetectionTask(network, data)
        case Host():
            return SetTask(network, data)
    raise TypeError(f"no task trains a {type(network).__name__}")


def total(terms: dict[str, Tensor]) -> Tensor:
    """Return the sum of a loss's terms."""
    return torch.stack(list(terms.values())).sum()
