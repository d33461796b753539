"""Networks of an elastic supernet that run on its own weights, so that training one trains all.

A network's tensor is a part of the supernet's: its first rows and columns, or some of them. What
part it is, `cuts_of` finds by letting `inherit.fill` copy numbers instead of weights.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import CheckpointError
from .architecture import Architecture
from .detector import Detector
from .inherit import Positions, fill
from .supernet import Supernet

ASKED_SHARE = 0.7
"""Of n networks that are asked for: share of the draws that are theirs, times n / (n + 1)."""


@dataclass(frozen=True, slots=True)
class Member:
    """A network of an elastic supernet."""

    architecture: Architecture
    positions: Positions
    """Of each stage, the supernet's positions that it has."""

    def to_dict(self) -> dict[str, object]:
        """Return it as JSON values, without what all networks of the supernet share."""
        return {
            "widths": self.architecture.widths,
            "blocks": self.architecture.blocks,
            "global_block": self.architecture.global_block,
            "positions": self.positions,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], template: Architecture) -> Self:
        """Read JSON values; `template` is the supernet's. Raises `KeyError`, `TypeError`."""
        w1, w2, w3, w4 = values["widths"]
        b1, b2, b3, b4 = values["blocks"]
        architecture = template.with_(
            name="thinned",
            widths=(w1, w2, w3, w4),
            blocks=(b1, b2, b3, b4),
            global_block=values["global_block"],
        )
        return cls(architecture, tuple(tuple(chosen) for chosen in values["positions"]))


@dataclass(frozen=True, slots=True)
class Cut:
    """Which part of a tensor of the supernet a tensor of a network is."""

    source: str
    """Name of the supernet's tensor."""
    axes: tuple[int | Tensor, ...]
    """For each axis how many of the first, or which."""

    def of(self, tensor: Tensor) -> Tensor:
        """Return the part: a view, or a copy where other than the first are taken."""
        for axis, kept in enumerate(self.axes):
            if isinstance(kept, int):
                tensor = tensor.narrow(axis, 0, kept)
            else:
                tensor = tensor.index_select(axis, kept.to(tensor.device))
        return tensor


@torch.no_grad()
def cuts_of(supernet: Supernet, members: Sequence[Member]) -> list[Mapping[str, Cut]]:
    """Return, for each network, which part of the supernet each of its parameters is.

    Raises `CheckpointError` where a network is no part of the supernet, or has weights that the
    supernet lacks, as ENACT's scores in the place of original attention.
    """
    numbered = Supernet(supernet.space).double()  # doubles count exactly
    numbered.elastic = True
    starts, names = [0], []
    for name, parameter in numbered.named_parameters():
        numbers = torch.arange(parameter.numel(), dtype=torch.float64) + starts[-1]
        parameter.copy_(numbers.view_as(parameter))
        starts.append(starts[-1] + parameter.numel())
        names.append(name)
    shapes = {name: tuple(parameter.shape) for name, parameter in numbered.named_parameters()}
    bounds = torch.tensor(starts)
    found: list[Mapping[str, Cut]] = []
    for member in members:
        network = Detector(member.architecture).double()
        for parameter in network.parameters():
            parameter.fill_(-1)
        fill(network, numbered, member.positions)
        cuts = {}
        for name, parameter in network.named_parameters():
            number = parameter.long()
            if int(number.min()) < 0:
                raise CheckpointError(f"{name} of {member.architecture.blocks} has no weights here")
            source = int(torch.searchsorted(bounds, number.flatten()[0], right=True)) - 1
            axes = _axes(number - starts[source], shapes[names[source]])
            cuts[name] = Cut(names[source], axes)
        found.append(cuts)
    return found


def _axes(numbers: Tensor, shape: Sequence[int]) -> tuple[int | Tensor, ...]:
    """Return which part along each axis the numbers of a tensor of `shape` are."""
    axes: list[int | Tensor] = []
    again = torch.zeros_like(numbers)
    for axis, size in enumerate(shape):
        stride = math.prod(shape[axis + 1 :])
        line = numbers[tuple(slice(None) if a == axis else 0 for a in range(numbers.ndim))]
        kept = line // stride % size
        view = [1] * numbers.ndim
        view[axis] = -1
        again += (kept * stride).view(view)
        axes.append(len(kept) if torch.equal(kept, torch.arange(len(kept))) else kept)
    assert torch.equal(again, numbers), "a part of a tensor is chosen axis by axis"
    return tuple(axes)


class Shared:
    """A network that computes with the supernet's weights."""

    def __init__(self, member: Member, cuts: Mapping[str, Cut]) -> None:
        """Build the modules; their own weights are never used, and take no memory."""
        self.network = Detector(member.architecture)
        self.cuts = cuts
        for parameter in self.network.parameters():
            parameter.data = parameter.data.new_empty(0)

    def __call__(self, weights: Mapping[str, Tensor], image_BHW3: Tensor) -> tuple[Tensor, ...]:
        """Run in training mode: BatchNorm uses the statistics of the batch.

        `weights` are the supernet's parameters by name.
        """
        self.network.to(image_BHW3.device).train()
        own = {name: cut.of(weights[cut.source]) for name, cut in self.cuts.items()}
        return cast(tuple[Tensor, ...], functional_call(self.network, own, (image_BHW3,)))


class Elastic(nn.Module):
    """Runs one of the networks at a time on the weights of the supernet.

    The first member is the largest network, the last the smallest.
    """

    def __init__(
        self, supernet: Supernet, members: Sequence[Member], asked: Collection[Member] = ()
    ) -> None:
        """Find the members' weights; those that are `asked` for are drawn more often.

        Where none is known to be asked for, the smallest one is.
        """
        super().__init__()
        self.supernet = supernet
        cuts = cuts_of(supernet, members)
        self.shared = [Shared(*pair) for pair in zip(members, cuts, strict=True)]
        often = [place for place, member in enumerate(members) if place and member in asked]
        self.often = often or [len(members) - 1]
        """Places of the members that are drawn more often."""
        self.largest = True
        """Whether the largest network is the next to run, or one that is drawn."""
        self.anyone = False
        """Whether the largest may be drawn too."""
        self.drawn: int | None = None
        """The member that was drawn for this turn; None to draw one at every pass."""

    def forward(self, image_BHW3: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of the network whose turn it is."""
        weights = dict(self.supernet.named_parameters())
        drawn = self.draw() if self.drawn is None else self.drawn
        return self.shared[0 if self.largest else drawn](weights, image_BHW3)

    def draw(self, by: torch.Generator | None = None) -> int:
        """Return which member runs: one of those asked for, or any but the largest.

        Drawn by a generator, torch's own where none is given.
        """
        last = len(self.shared) - 1
        if self.anyone:
            return int(torch.randint(0, last + 1, (), generator=by))
        asked = len(self.often)
        if last == 0 or torch.rand((), generator=by) < ASKED_SHARE * asked / (asked + 1):
            return self.often[int(torch.randint(0, asked, (), generator=by))]
        return int(torch.randint(1, last + 1, (), generator=by))
