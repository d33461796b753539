"""The common part of tasks that train a backbone: nothing is searched, samples come by key."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import nn

from ..checkpoint import Kind
from ..heatdetr.architecture import Architecture
from .distributed import Group
from .feed import feed_keyed
from .optimise import ParameterGroup, parameter_groups
from .recipes import TrainConfig
from .samples import Keyed
from .task import Batch, Constant


class BackboneTask(Constant, ABC):
    """Trains a network around a backbone; subclasses give the data and the loss."""

    kind: Kind = "backbone"

    def __init__(self, network: nn.Module, architecture: Architecture) -> None:
        """Train `network`, whose backbone is of `architecture`."""
        self.network = self.model = network
        self.size, self.description = architecture.input_size, architecture.to_json()

    def parameter_groups(self, config: TrainConfig) -> list[ParameterGroup]:
        """Return decayed convolutions and undecayed vectors."""
        return parameter_groups(self.network, config)

    def feed(
        self, config: TrainConfig, epochs: range, group: Group, workers: int, skip: int
    ) -> Iterator[Batch]:
        """Yield augmented samples with their targets."""
        source = self.source(config)
        yield from feed_keyed(source, config, epochs, group=group, workers=workers, skip=skip)

    @abstractmethod
    def source(self, config: TrainConfig) -> Keyed:
        """Return what makes the samples."""
