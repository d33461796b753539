"""Post-training INT8: which convolutions are quantized, and over which ranges.

Weights are symmetric with a scale for each output channel; inputs are symmetric with one scale,
whose range is found on images and clipped where that lowers the mean squared error.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor, nn

from .detector import Detector

LEVELS = 127
BINS = 2048
CLIPS = tuple(share / 32 for share in range(8, 33))
"""Shares of the largest magnitude that are tried as the range."""


@dataclass(frozen=True, slots=True)
class Range:
    """The range of a convolution's input, found on images."""

    limit: float
    """Magnitude that becomes 127; larger ones are clipped."""
    error: float
    """Mean squared quantization error over the mean square: a share of the signal's energy."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a network's convolutions are quantized to 8 bits."""

    ranges: Mapping[str, Range]
    """By the convolution's name in the folded network."""
    outputs: Mapping[str, Range] = field(default_factory=dict)
    """The same of the outputs, where they are quantized too."""
    kept: frozenset[str] = field(default_factory=frozenset)
    """Places (latency entries) whose convolutions stay in floating point."""

    def limit(self, name: str) -> float | None:
        """Return the range of a convolution's input, None where it is not quantized."""
        return None if place_of(name) in self.kept else self.ranges[name].limit

    def output_limit(self, name: str) -> float | None:
        """Return the range of a convolution's output, None where it is not quantized."""
        return self.outputs[name].limit if name in self.outputs else None

    @property
    def integer_bias(self) -> bool:
        """Whether biases are quantized: where outputs are."""
        return bool(self.outputs)

    def keeping(self, places: Iterable[str]) -> Self:
        """Return the plan with other places in floating point."""
        return replace(self, kept=frozenset(places))


def place_of(name: str) -> str:
    """Return the place of a convolution: `s1_0` of `s1_0.ffn.fc1`."""
    return name.split(".", 1)[0]


def convolutions(network: Detector) -> dict[str, nn.Conv2d]:
    """Return a folded network's convolutions by name, `place.path`."""
    return {
        name: module
        for name, module in network.units.named_modules()
        if isinstance(module, nn.Conv2d)
    }


@torch.no_grad()
def calibrate(
    network: Detector, batches: Iterable[Tensor], *, outputs: bool = False
) -> Quantization:
    """Return the ranges of all convolutions' inputs on images, uint8 [B, H, W, 3].

    `network` is folded. Two passes: the largest magnitudes, then histograms up to them. With
    `outputs` those are quantized too.
    """
    images = list(batches)
    layers = convolutions(network)
    largest: dict[str, float] = {}
    counts: dict[str, Tensor] = {}

    def watch_largest(name: str, x: Tensor) -> None:
        largest[name] = max(largest.get(name, 0.0), float(x.abs().max()))

    def count(name: str, x: Tensor) -> None:
        found = torch.histc(x.abs().float(), BINS, 0.0, largest[name] or 1.0).double()
        found[0] -= (x == 0).sum()  # they have no error at any range
        counts[name] = counts[name] + found if name in counts else found

    for look in (watch_largest, count):
        hooks = [layer.register_forward_hook(_both(name, look)) for name, layer in layers.items()]
        for batch in images:
            network(batch)
        for hook in hooks:
            hook.remove()
    ranges = {key: best_range(largest[key], counts[key]) for key in counts}
    return Quantization(
        {name: ranges[f"{name} in"] for name in layers},
        {name: ranges[f"{name} out"] for name in layers} if outputs else {},
    )


def _both(name: str, look: Callable[[str, Tensor], None]) -> Callable[..., None]:
    """Return a hook that looks at a layer's input and output."""

    def hook(layer: nn.Module, given: tuple[Tensor, ...], result: Tensor) -> None:
        look(f"{name} in", given[0])
        look(f"{name} out", result)

    return hook


def best_range(largest: float, counts: Tensor) -> Range:
    """Return the range of least squared error for a histogram of magnitudes up to `largest`."""
    top = largest or 1.0
    values = (torch.arange(BINS, dtype=torch.float64) + 0.5) * top / BINS
    energy = float((counts * values**2).sum()) or 1.0
    candidates = []
    for share in CLIPS:
        limit = top * share
        step = limit / LEVELS
        rounded = (values / step).round().clamp(max=LEVELS) * step
        # Within a bin values are spread evenly: where the step is finer, step^2 / 12 is the error.
        error = torch.where(
            values <= limit, torch.full_like(values, step**2 / 12), (values - rounded) ** 2
        )
        candidates.append((float((counts * error).sum()) / energy, limit))
    least, best = min(candidates)
    return Range(best, least)
