"""Finds feature maps among an encoder's outputs, and reads them as [B, C, h, w].

Suffixes: B images, C channels, h and w cells, N tokens, H and W input pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Layout = Literal["BChw", "BhwC", "BNC"]
Maps = npt.NDArray[np.float16]
"""Features of some images, [B, C, h, w]."""

MAX_STRIDE = 64
EXTRA = (0, 1, 2, 4, 5, 8, 9, 16, 17)
"""Tokens that are no cells: 1 or 2 of the class, 4, 8 or 16 registers."""
SHAPES = "a map [B, C, h, w] or [B, h, w, C], or tokens [B, N, C]"


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """Where an encoder's features are: an output, and how it is laid out."""

    name: str
    layout: Layout
    channels: int
    cells_hw: tuple[int, int]
    extra: int = 0
    """Class and register tokens before those of the cells."""

    def stride(self, input_hw: tuple[int, int]) -> float:
        """Return the input pixels of a cell's side."""
        return max(side / cells for side, cells in zip(input_hw, self.cells_hw, strict=True))

    def read(self, output: npt.NDArray[Any]) -> Maps:
        """Return an output as [B, C, h, w]; features beyond half precision become infinite."""
        found = output
        if self.layout == "BNC":
            tokens_BNC = output[:, self.extra :]
            found = tokens_BNC.reshape(len(output), *self.cells_hw, self.channels)
        if self.layout != "BChw":
            found = found.transpose(0, 3, 1, 2)
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(found, dtype=np.float16)

    def __str__(self) -> str:
        """Return the text of a log line."""
        h, w = self.cells_hw
        extra = f", {self.extra} other tokens" if self.extra else ""
        return f"{self.name} ({self.channels} channels, {h}x{w} cells{extra})"


def feature_map(
    name: str, shape: Sequence[int], input_hw: tuple[int, int], *, channels_first: bool = True
) -> FeatureMap | None:
    """Return how an output of a shape holds features of an input; None where it cannot.

    Cells divide the input evenly. `channels_first` decides where both orders of a map are possible.
    """
    if len(shape) == 4:
        first = FeatureMap(name, "BChw", shape[1], (shape[2], shape[3]))
        last = FeatureMap(name, "BhwC", shape[3], (shape[1], shape[2]))
        order = (first, last) if channels_first else (last, first)
        return next((m for m in order if _divides(m.cells_hw, input_hw) and m.channels > 1), None)
    if len(shape) == 3:
        return _tokens(name, shape[1], shape[2], input_hw)
    return None


def _divides(cells_hw: tuple[int, int], input_hw: tuple[int, int]) -> bool:
    """Return whether cells of one whole stride cover the input, its last part or not."""
    height, width = input_hw
    return any(
        cells_hw
        in ((height // stride, width // stride), (-(-height // stride), -(-width // stride)))
        for stride in range(2, MAX_STRIDE + 1)
    )


def _tokens(name: str, tokens: int, channels: int, input_hw: tuple[int, int]) -> FeatureMap | None:
    """Return the grid of tokens with the fewest other tokens beside it."""
    grids = {(input_hw[0] // stride, input_hw[1] // stride) for stride in range(4, MAX_STRIDE + 1)}
    fitting = [(tokens - h * w, (h, w)) for h, w in grids if tokens - h * w in EXTRA]
    if not fitting or channels < 2:
        return None
    extra, cells_hw = min(fitting)
    return FeatureMap(name, "BNC", channels, cells_hw, extra) if min(cells_hw) > 1 else None


def deepest(maps: Sequence[FeatureMap]) -> FeatureMap:
    """Return the features to learn where none are named: of the fewest cells, then the first."""
    return min(maps, key=lambda found: found.cells_hw[0] * found.cells_hw[1])
