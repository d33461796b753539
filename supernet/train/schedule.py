"""Maps trained epochs to epochs of the planned schedule, where a training is shortened on the way.

Learning rate, temperature of a supernet and mosaic follow the plan. A training that is shortened
goes through the rest of the plan faster: nothing jumps, and the plan's end is reached.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from .recipes import TrainConfig

Knot = tuple[float, float]
"""Epochs trained, and the epochs of the plan that they correspond to."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Piecewise linear: from epochs trained to epochs of the plan."""

    knots: tuple[Knot, ...]

    @classmethod
    def of(cls, epochs: int) -> Self:
        """Return the schedule of a training that is not shortened."""
        return cls(((0.0, 0.0), (float(epochs), float(epochs))))

    @classmethod
    def from_list(cls, knots: Sequence[Sequence[float]]) -> Self:
        """Read what `to_list` returned."""
        return cls(tuple((float(trained), float(plan)) for trained, plan in knots))

    def to_list(self) -> list[list[float]]:
        """Return the knots as JSON values."""
        return [list(knot) for knot in self.knots]

    @property
    def epochs(self) -> int:
        """Epochs to train."""
        return round(self.knots[-1][0])

    @property
    def planned(self) -> int:
        """Epochs of the plan."""
        return round(self.knots[-1][1])

    @property
    def shortened_after(self) -> list[int]:
        """The epochs after which it was shortened."""
        return [round(trained) for trained, _ in self.knots[1:-1]]

    def at(self, epochs: float) -> float:
        """Return the epochs of the plan after trained epochs; equal if not shortened."""
        if self.epochs == self.planned:
            return epochs
        trained, plan = zip(*self.knots, strict=True)
        return float(np.interp(epochs, trained, plan))

    def step(self, step: int, steps_an_epoch: int) -> float:
        """Return the step of the plan, counted from 0, at the end of a step."""
        if self.epochs == self.planned:
            return step
        return self.at((step + 1) / steps_an_epoch) * steps_an_epoch - 1

    def epoch(self, epoch: int) -> float:
        """Return the epoch of the plan, counted from 0, at the end of an epoch."""
        return self.at(epoch + 1) - 1

    def shortened(self, trained: int, epochs: int) -> Self:
        """Return the schedule that after `trained` epochs ends at `epochs` in all."""
        before = [knot for knot in self.knots if knot[0] < trained]
        end = (float(epochs), float(self.planned))
        return type(self)((*before, (float(trained), self.at(trained)), end))

    def config(self, config: TrainConfig) -> TrainConfig:
        """Return the settings with the epochs to train, and how many of them have no mosaic."""
        start = self.planned - config.plain_epochs
        plain = sum(self.at(epoch) >= start for epoch in range(self.epochs))
        return replace(config, epochs=self.epochs, plain_epochs=plain)
