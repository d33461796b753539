"""The tokens of images: the input and output of encoders.

Shape suffixes: B batch, N tokens, D channels.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Tokens:
    """Input or output of an encoder: the cells of a map, or of several, one after another."""

    x_BND: Tensor
    pos_BND: Tensor
    """Encoded positions."""
    pad_BN: Tensor | None
    """Which tokens are padding."""
    maps: tuple[tuple[int, int], ...]
    """Rows and columns of each map."""

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of the only map."""
        (cells,) = self.maps
        return cells

    @property
    def sizes(self) -> list[int]:
        """Number of tokens of each map."""
        return [h * w for h, w in self.maps]

    def by_map(self) -> list["Tokens"]:
        """Return the tokens of each map alone."""
        found, first = [], 0
        for cells, size in zip(self.maps, self.sizes, strict=True):
            own = slice(first, first + size)
            pad = None if self.pad_BN is None else self.pad_BN[:, own]
            found.append(Tokens(self.x_BND[:, own], self.pos_BND[:, own], pad, (cells,)))
            first += size
        return found
