"""What a network learns, and from what: the part of training that differs between networks."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..checkpoint import Kind
from ..data.detection_set import DetectionSet
from ..detr.detr import Host
from ..heatdetr.supernet import Supernet
from ..network import Network
from .aligned import training_loss
from .distributed import Group
from .feed import feed
from .mtkd import Branches, distance
from .recipes import TrainConfig
from .set_loss import DETR, SAM_DETR, set_loss

Batch = tuple[Tensor, Any]
"""Images, uint8 [B, H, W, 3], and their targets."""


class Task(Protocol):
    """Feeds a network and judges its outputs."""

    kind: Kind
    """Of the checkpoint."""
    description: str
    """JSON of what the network is."""
    names: tuple[str, ...]
    """Names of the classes."""
    num_images: int
    """Images of an epoch."""
    digest: str
    """Hash of the images and their annotations."""

    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint says of the data and of the search."""

    def traces(self) -> dict[str, Any]:
        """Return what is kept of every epoch beside the losses."""

    def start_epoch(self, epoch: float, epochs: int) -> None:
        """Prepare the network for an epoch."""

    def feed(
        self, config: TrainConfig, epochs: range, group: Group, workers: int, skip: int
    ) -> Iterator[Batch]:
        """Yield this process's share of the batches of some epochs, without the first `skip`."""

    def loss(
        self, outputs: Sequence[Tensor], targets: Any, config: TrainConfig
    ) -> dict[str, Tensor]:
        """Return the terms of the loss by name."""


class DetectionTask:
    """Objects of a detection set, for any network or a supernet."""

    def __init__(self, network: Network, data: DetectionSet) -> None:
        """Keep both."""
        self.network, self.data = network, data
        self.names, self.num_images = data.names, len(data.records)
        self.digest = data.digest
        self.kind: Kind = "detector"
        self.description = network.architecture.to_json()
        if isinstance(network, Supernet):
            self.kind, self.description = "supernet", network.space.to_json()

    def facts(self) -> dict[str, Any]:
        """Return data, split and number of images, and how a supernet is searched."""
        found = {
            "data": self.data.root.name,
            "split": self.data.split,
            "images": self.num_images,
        }
        return found | (self.network.facts() if isinstance(self.network, Supernet) else {})

    def traces(self) -> dict[str, Any]:
        """Return the selection logits of a supernet, to be drawn over time."""
        if not isinstance(self.network, Supernet):
            return {}
        return {"r": {place: list(r) for place, r in self.network.named_logits().items()}}

    def start_epoch(self, epoch: float, epochs: int) -> None:
        """Set a supernet's temperature."""
        if isinstance(self.network, Supernet):
            self.network.start_epoch(epoch, epochs)

    def feed(
        self, config: TrainConfig, epochs: range, group: Group, workers: int, skip: int
    ) -> Iterator[Batch]:
        """Yield augmented batches."""
        size = self.network.architecture.input_size
        return feed(self.data, size, config, epochs, group=group, workers=workers, skip=skip)

    def loss(
        self, outputs: Sequence[Tensor], targets: Any, config: TrainConfig
    ) -> dict[str, Tensor]:
        """Return the terms of the detection loss."""
        if isinstance(self.network, Host):
            weights = SAM_DETR if self.network.decode.focal else DETR
            size = self.network.architecture.input_size
            terms = set_loss(outputs[0], outputs[1], targets, size, weights)
            if len(outputs) == 4:
                branches = Branches((outputs[0], outputs[1]), (outputs[2], outputs[3]))
                terms["distance"] = distance(branches)
            return terms
        loss = training_loss(outputs, targets, self.network.decode, config.assign)
        return {"classes": loss.classes, "boxes": loss.boxes}


def total(terms: dict[str, Tensor]) -> Tensor:
    """Return the sum of a loss's terms."""
    return torch.stack(list(terms.values())).sum()
