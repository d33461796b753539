"""The Gumbel-softmax supernet: every position holds all operators (spec section 7, paper Eq. 8).

Shape suffix: C candidates of a position, in the order of `CANDIDATES`.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypedDict, cast

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, UserError
from .architecture import LOCAL_OPERATORS, Architecture, GlobalBlock
from .detector import Detector
from .operators import OPERATORS
from .operators.entries import Entry
from .place import local_name

CANDIDATES = (*LOCAL_OPERATORS.values(), "identity")
"""Order of the logits r of a position."""
IDENTITY = len(CANDIDATES) - 1

GLOBAL_BLOCKS: tuple[GlobalBlock, ...] = ("cw", "oa")
"""Order of the two logits of the global block."""

Noise = Literal["gumbel", "uniform"]
"""Gumbel noise, or the paper's literal U(0, 1)."""


class SpaceRecord(TypedDict):
    """A search space as JSON."""

    template: dict[str, object]
    """The architecture whose widths are the largest."""
    positions: tuple[int, int, int, int]
    """A list when read back."""
    global_choice: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpace:
    """Largest widths and most positions of each stage; everything else is the template's."""

    template: Architecture
    """Input size, classes, anchors, global block; its widths are D_max."""
    positions: tuple[int, int, int, int]
    """N_max: local positions of each stage."""
    global_choice: bool = False
    """Whether the global block of S4, SAM_4, SCM and TCM is searched too: one choice for all."""

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Largest width of each stage, D_max."""
        return self.template.widths

    def to_dict(self) -> SpaceRecord:
        """Return the space as JSON values."""
        return {
            "template": self.template.to_dict(),
            "positions": self.positions,
            "global_choice": self.global_choice,
        }

    def to_json(self) -> str:
        """Return the space as a text, for the header of a checkpoint."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | str, source: str) -> Self:
        """Read a space; raise `CheckpointError` where the values are none.

        Version 0.1.0 kept the space as a text in `run.json`.
        """
        if isinstance(values, str):
            return cls.from_json(values, source)
        try:
            n1, n2, n3, n4 = values["positions"]
            return cls(
                template=Architecture.from_dict(values["template"], source),
                positions=(n1, n2, n3, n4),
                global_choice=bool(values.get("global_choice", False)),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{source} holds no search space ({error})") from None

    @classmethod
    def from_json(cls, text: str, source: str) -> Self:
        """Read a text; raise `CheckpointError` where it holds no space."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{source} holds no search space ({error})") from None
        return cls.from_dict(values, source)


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """How the selection logits are trained."""

    noise: Noise = "gumbel"
    """Noise added to the logits in training: gumbel, or the paper's literal uniform."""
    tau_start: float = 5.0
    """Softmax temperature in the first epoch."""
    tau_end: float = 0.1
    """Softmax temperature in the last epoch."""
    logit_learning_rate: float = 1e-3
    """Learning rate of the logits; in the paper they share the optimiser step of the weights."""
    frozen_share: float = 0.1
    """Share of the epochs in which the logits stay at zero."""
    straight_through: bool = False
    """Run one sampled operator per position (hard forward, soft gradient): less memory."""

    def __post_init__(self) -> None:
        """Refuse a learning rate that cannot train."""
        if not 0 <= self.logit_learning_rate < math.inf:
            raise UserError(
                f"--logit-learning-rate {self.logit_learning_rate}: a number of 0 or more needed"
            )


def temperature(epoch: float, epochs: int, config: SearchConfig) -> float:
    """Return `tau_e = start * (end / start) ** (e / (E - 1))`."""
    share = epoch / max(1, epochs - 1)
    return float(config.tau_start * (config.tau_end / config.tau_start) ** share)


def draw_noise(like: Tensor, noise: Noise) -> Tensor:
    """Draw noise of the shape of `like`: -log(-log u), or u itself."""
    u = torch.rand_like(like).clamp(1e-9, 1 - 1e-7)
    return u if noise == "uniform" else -torch.log(-torch.log(u))


class Mixture(nn.Module):
    """One position: `x <- sum_n p_n op_n(x)`, p = softmax((r + eps) / tau)."""

    def __init__(self, width: int) -> None:
        """Build all operators, with logits of zero."""
        super().__init__()
        entry = Entry("", 0, width, width, 0, 0)
        self.operators = nn.ModuleList(
            OPERATORS[name].build(entry) for name in CANDIDATES if name != "identity"
        )
        self.r = nn.Parameter(torch.zeros(len(CANDIDATES)))
        self.tau = 1.0
        self.noise: Noise = "gumbel"
        self.straight_through = False

    def probabilities(self) -> Tensor:
        """Return p, with fresh noise while training."""
        noise_C = draw_noise(self.r, self.noise) if self.training else torch.zeros_like(self.r)
        return ((self.r + noise_C) / self.tau).softmax(0)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        """Mix the operators' outputs."""
        p_C = self.probabilities()
        if self.straight_through and self.training:
            chosen = int(p_C.argmax())
            out: Tensor = x_BDHW if chosen == IDENTITY else self.operators[chosen](x_BDHW)
            return out * (1.0 + p_C[chosen] - p_C[chosen].detach())
        mixed = p_C[IDENTITY] * x_BDHW
        for p, operator in zip(p_C, self.operators, strict=False):
            mixed = mixed + p * operator(x_BDHW)
        return mixed


class GlobalMixture(nn.Module):
    """A searched global block: `p_cw cw(x) + p_oa oa(x)`, p shared by the whole network."""

    def __init__(self, blocks: Mapping[GlobalBlock, nn.Module]) -> None:
        """Hold one module for each of `GLOBAL_BLOCKS`; the supernet sets `weights` each pass."""
        super().__init__()
        self.blocks = nn.ModuleDict({str(kind): block for kind, block in blocks.items()})
        self.weights = torch.full((len(GLOBAL_BLOCKS),), 1.0 / len(GLOBAL_BLOCKS))

    def forward(self, x_BDHW: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Mix the outputs, one by one where there are several (T1)."""
        outputs = [self.blocks[kind](x_BDHW) for kind in GLOBAL_BLOCKS]
        if isinstance(outputs[0], tuple):
            return tuple(self._mix(parts) for parts in zip(*outputs, strict=True))
        return self._mix(outputs)

    def _mix(self, outputs: Sequence[Tensor]) -> Tensor:
        return torch.stack([p * y for p, y in zip(self.weights, outputs, strict=True)]).sum(0)


class Supernet(Detector):
    """A detector of the largest widths whose local positions are mixtures."""

    def __init__(self, space: SearchSpace, config: SearchConfig | None = None) -> None:
        """Build the template and replace its local blocks."""
        n1, n2, n3, n4 = ("R" * count for count in space.positions)
        super().__init__(space.template.with_(name="supernet", blocks=(n1, n2, n3, n4)))
        self.space = space
        self.config = config or SearchConfig()
        self.elastic = False
        """Whether its channels are in the order of importance, and its networks ready to use."""
        for stage, count in enumerate(space.positions, 1):
            for position in range(count):
                mixture = Mixture(space.widths[stage - 1])
                mixture.noise = self.config.noise
                mixture.straight_through = self.config.straight_through
                self.units[local_name(stage, position)] = mixture
        self.global_tau = 1.0
        if space.global_choice:
            self.global_r = nn.Parameter(torch.zeros(len(GLOBAL_BLOCKS)))
            kinds = {
                kind: self.architecture.with_(global_block=kind).entries() for kind in GLOBAL_BLOCKS
            }
            for place, entry in kinds["cw"].items():
                if kinds["oa"][place] != entry:
                    blocks = {
                        kind: OPERATORS[entries[place].op].build(entries[place])
                        for kind, entries in kinds.items()
                    }
                    self.units[place] = GlobalMixture(blocks)

    def forward(self, image_BHW3: Tensor) -> tuple[Tensor, ...]:
        """Draw the global choice once for the pass, then run as a detector."""
        if self.space.global_choice:
            noise = draw_noise(self.global_r, self.config.noise) if self.training else 0.0
            weights = ((self.global_r + noise) / self.global_tau).softmax(0)
            for unit in self.units.values():
                if isinstance(unit, GlobalMixture):
                    unit.weights = weights
        return super().forward(image_BHW3)

    def best_global_block(self) -> GlobalBlock:
        """Return the global block with the larger logit, or the template's if none is searched."""
        if not self.space.global_choice:
            return self.space.template.global_block
        return GLOBAL_BLOCKS[int(self.global_r.argmax())]

    def mixtures(self) -> Iterator[tuple[tuple[int, int], Mixture]]:
        """Yield ((stage, position), mixture), stages counted from 1."""
        for stage, count in enumerate(self.space.positions, 1):
            for position in range(count):
                yield (stage, position), cast(Mixture, self.units[local_name(stage, position)])

    def start_epoch(self, epoch: float, epochs: int) -> None:
        """Set the temperature, and freeze the logits for the first share of the epochs."""
        tau = temperature(epoch, epochs, self.config)
        trainable = epoch >= self.config.frozen_share * epochs
        for _, mixture in self.mixtures():
            mixture.tau = tau
            mixture.r.requires_grad_(trainable)
        if self.space.global_choice:
            self.global_tau = tau
            self.global_r.requires_grad_(trainable)

    def logits(self) -> dict[tuple[int, int], tuple[float, ...]]:
        """Return r of every position as numbers."""
        return {place: tuple(mixture.r.tolist()) for place, mixture in self.mixtures()}

    def named_logits(self, weights: Mapping[str, Tensor]) -> dict[str, tuple[float, ...]]:
        """Return r of a state dict by names as `s3_7`, the global block's too if it is searched."""
        places = [local_name(*place) for place, _ in self.mixtures()]
        found = {place: tuple(weights[f"units.{place}.r"].tolist()) for place in places}
        if self.space.global_choice:
            found["global"] = tuple(weights["global_r"].tolist())
        return found
