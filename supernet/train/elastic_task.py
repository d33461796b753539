"""Training of an elastic supernet: the largest network on labels, others of its chain beside it.

A step trains the largest network, then one that is drawn, on the same images (the sandwich rule of
Yu et al. 2020, BigNAS). Each makes an update of its own: gradients of two networks in one sum
learnt more slowly. All learn the labels. Those that are drawn may also learn the largest network's
maps, anchor by anchor (`distill.py`), which is then their teacher in place; where all are trained
from scratch on small data it gave nothing (benchmarks/results/elastic).
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import Kind
from ..data.detection_set import DetectionSet
from ..errors import UserError
from ..heatdetr.elastic import Elastic, Member
from ..heatdetr.supernet import Supernet
from .distill import distillation
from .distributed import step_seed
from .head_maps import by_head
from .optimise import is_logit
from .recipes import TrainConfig
from .task import DetectionTask


@dataclass(frozen=True, kw_only=True, slots=True)
class ElasticConfig:
    """How the networks of an elastic supernet are trained together."""

    drawn: int = 1
    """Networks that are drawn in a step."""
    sandwich: bool = True
    """Whether each step has the largest network too; else one of all is drawn, and no teacher."""
    teach_from: float = 1.0
    """Share of the epochs after which networks that are drawn learn the largest one's maps; 1 for
    never."""

    def __post_init__(self) -> None:
        """Refuse what no step can have."""
        if self.drawn < 1:
            raise UserError(f"--drawn {self.drawn}: at least 1 network beside the largest")
        if not 0 <= self.teach_from <= 1:
            raise UserError(f"--teach-from {self.teach_from:g}: a share from 0 to 1")


class ElasticTask(DetectionTask):
    """Detection by all networks of an elastic supernet."""

    kind: Kind = "supernet"

    def __init__(
        self,
        supernet: Supernet,
        data: DetectionSet,
        members: Sequence[Member],
        config: ElasticConfig | None = None,
        *,
        asked: Collection[Member] = (),
        origin: str = "",
    ) -> None:
        """Train `members` of `supernet` on `data`: the largest first, the smallest last.

        Those that are `asked` for already have more turns. `origin` is the digest of the file of
        the supernet that this one was made of.
        """
        super().__init__(supernet, data)
        self.config = config or ElasticConfig()
        self.members, self.origin = members, origin
        self.description = supernet.space.to_json()
        for name, parameter in supernet.named_parameters():
            if is_logit(name):
                parameter.requires_grad_(False)
        self.elastic = Elastic(supernet, members, asked)
        self.elastic.anyone = not self.config.sandwich
        self.model: Any = self.elastic
        self.turns = 1 + self.config.drawn if self.config.sandwich else 1
        self._taught = False
        self._teacher: list[list[Tensor]] = []
        """The largest network's maps of each batch of the step."""
        self._batch = 0

    @property
    def turn(self) -> int:
        """The update of the step that is being made: the first is the largest network's."""
        return self._turn

    @turn.setter
    def turn(self, number: int) -> None:
        self._turn, self._batch = number, 0
        self.elastic.largest = number == 0 and self.config.sandwich
        # One for all batches and processes of the turn: gradients of two networks are not summed.
        by = torch.Generator().manual_seed(step_seed() * 101 + number)
        self.elastic.drawn = self.elastic.draw(by)
        if number == 0:
            self._teacher.clear()

    def start_epoch(self, epoch: float, epochs: int) -> None:
        """Begin to teach when the largest network has learnt enough."""
        self._taught = self.config.sandwich and epoch >= self.config.teach_from * epochs

    def facts(self) -> dict[str, object]:
        """Return data, split and number of images, and the networks that are trained."""
        networks = [member.to_dict() for member in self.members]
        elastic = {**asdict(self.config), "supernet": self.origin, "networks": networks}
        return super().facts() | {"elastic": elastic}

    def loss(
        self, outputs: Sequence[Tensor], targets: Any, config: TrainConfig
    ) -> dict[str, Tensor]:
        """Return the terms of the network whose turn it is, those of drawn ones as their mean."""
        terms = super().loss(outputs, targets, config)
        if self.turn == 0:
            if self._taught:
                self._teacher.append([maps.detach() for maps in outputs])
            return terms
        found = {f"drawn_{name}": value for name, value in terms.items()}
        if self._taught:
            teacher = self._teacher[self._batch]
            self._batch += 1
            found |= self._lack(outputs, teacher)
        return found

    def _lack(self, outputs: Sequence[Tensor], teacher: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return what a network lacks to the maps of the largest one, over all its heads."""
        heads = [
            distillation(maps, theirs, self.network.decode)
            for maps, theirs in zip(by_head(outputs), by_head(teacher), strict=True)
        ]
        return {name: torch.stack([head[name] for head in heads]).sum() for name in heads[0]}
