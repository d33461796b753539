"""Training of an elastic supernet: the largest network on labels, others of its chain beside it.

A step runs the largest network and some that are drawn (the sandwich rule of Yu et al. 2020,
BigNAS). All learn the labels; those that are drawn also learn the largest network's maps of the
same images, anchor by anchor (`distill.py`), which is their teacher in place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ..checkpoint import Kind
from ..data.detection_set import DetectionSet
from ..errors import UserError
from ..heatdetr.elastic import Elastic, Member
from ..heatdetr.supernet import Supernet
from .distill import distillation
from .recipes import TrainConfig
from .task import DetectionTask


@dataclass(frozen=True, kw_only=True, slots=True)
class ElasticConfig:
    """How the networks of an elastic supernet are trained together."""

    drawn: int = 1
    """Networks that are drawn in a step."""
    sandwich: bool = True
    """Whether each step has the largest network too; else one of all is drawn, and no teacher."""
    teach: bool = True
    """Whether networks that are drawn learn the largest one's maps."""

    def __post_init__(self) -> None:
        """Refuse a number that no step can have."""
        if self.drawn < 1:
            raise UserError(f"--drawn {self.drawn}: at least 1 network beside the largest")


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
        origin: str = "",
    ) -> None:
        """Train `members` of `supernet` on `data`: the largest first, the smallest last.

        `origin` is the digest of the file of the supernet that this one was made of.
        """
        super().__init__(supernet, data)
        self.config = config or ElasticConfig()
        self.description = supernet.space.to_json()
        for name, parameter in supernet.named_parameters():
            if name.rpartition(".")[2] in ("r", "global_r"):
                parameter.requires_grad_(False)
        drawn = self.config.drawn if self.config.sandwich else 0
        self.elastic = Elastic(supernet, members, drawn)
        self.model: Any = self.elastic
        self.members, self.origin = members, origin

    def facts(self) -> dict[str, object]:
        """Return data, split and number of images, and the networks that are trained."""
        networks = [member.to_dict() for member in self.members]
        elastic = {**asdict(self.config), "supernet": self.origin, "networks": networks}
        return super().facts() | {"elastic": elastic}

    def loss(
        self, outputs: Sequence[Tensor], targets: Any, config: TrainConfig
    ) -> dict[str, Tensor]:
        """Return the terms of the largest network, and the means of those that were drawn."""
        count = 1 + self.elastic.drawn
        maps = len(outputs) // count
        parts = [outputs[start : start + maps] for start in range(0, len(outputs), maps)]
        terms = dict(super().loss(parts[0], targets, config))
        for part in parts[1:]:
            found = {
                f"drawn_{name}": value
                for name, value in super().loss(part, targets, config).items()
            }
            if self.config.teach:
                found |= self._taught(part, parts[0])
            for name, value in found.items():
                share = value / (count - 1)
                terms[name] = terms[name] + share if name in terms else share
        return terms

    def _taught(self, part: Sequence[Tensor], teacher: Sequence[Tensor]) -> Mapping[str, Tensor]:
        """Return what a network lacks to the maps of the largest one, over all its heads."""
        found: dict[str, Tensor] = {}
        for head in range(0, len(part), 2):
            theirs = [maps.detach() for maps in teacher[head : head + 2]]
            of_head = distillation(part[head : head + 2], theirs, self.network.decode)
            for name, value in of_head.items():
                found[name] = found[name] + value if name in found else value
        return found
