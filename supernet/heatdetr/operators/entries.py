"""One term of a network's latency, MACs and parameters: an operator at a place, with its sizes."""

from dataclasses import KW_ONLY, dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """One operator at one place: starts and ends at NCHW maps, owns its activation and adds."""

    op: str
    """Name in `OPERATORS`."""
    stride: int
    """Stride in image pixels of the finest map the entry touches."""
    d_in: int
    """Channels of the first input."""
    d_out: int
    """Channels of the output."""
    h: int
    """Height of the finest map the entry touches, in cells."""
    w: int
    """Width of the finest map the entry touches, in cells."""
    _: KW_ONLY
    classes: int = 0
    """Of heads, `decode`, `decode_voted` and `top_k`."""
    anchors: int = 0
    """Anchors per cell, of the same."""
    sparsity: float = 0.0
    """Share of the tokens that `oa` passes unchanged."""
    clusters: float = 0.0
    """Largest number of clusters of `act`, as a share of the tokens."""
    window: int = 0
    """Tokens of a window of `enact` and `pool`."""
    blocks: int = 0
    """Global blocks in a row, of `t1_cw`, `t1_oa` and so on."""

    def __str__(self) -> str:
        """Return a short name for messages, e.g. `fuse 128->224 @16 52x84`."""
        widths = f"{self.d_in}" if self.d_in == self.d_out else f"{self.d_in}->{self.d_out}"
        return f"{self.op} {widths} @{self.stride} {self.h}x{self.w}"

    def with_(self, **changes: Any) -> "Entry":
        """Return a copy with some fields replaced."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Macs:
    """Multiply-adds of one image; the paper's GFLOPs are thousands of millions of these."""

    conv_linear: int = 0
    attention: int = 0
    """Batched matrix products: attention's, and the sums of a head of distributions."""

    def __add__(self, other: "Macs") -> "Macs":
        """Add both kinds."""
        return Macs(self.conv_linear + other.conv_linear, self.attention + other.attention)

    @property
    def total(self) -> int:
        """Convolution, linear and attention products together."""
        return self.conv_linear + self.attention


def map_sizes(input_size: tuple[int, int]) -> dict[int, tuple[int, int]]:
    """Return {stride: (height, width)} of the maps, each the ceil-half of the one before."""
    sizes = {1: input_size}
    for stride in (2, 4, 8, 16, 32, 64):
        height, width = sizes[stride // 2]
        sizes[stride] = ((height + 1) // 2, (width + 1) // 2)
    return sizes
