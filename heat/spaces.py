"""Supernet sizes with a name, from a small core to a large GPU."""

from collections.abc import Mapping
from typing import Any

from supernet.errors import UserError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.supernet import SearchSpace

Four = tuple[int, int, int, int]

SPACES: Mapping[str, tuple[Four, Four, int, int]] = {
    "micro": ((32, 64, 96, 128), (1, 1, 2, 1), 1, 1),
    "mini": ((64, 64, 128, 160), (1, 2, 4, 1), 1, 1),
    "midi": ((96, 96, 160, 256), (2, 2, 6, 2), 1, 1),
    "base": ((128, 128, 256, 384), (2, 2, 6, 2), 2, 3),
    "large": ((192, 192, 256, 384), (2, 2, 18, 2), 2, 3),
}
"""Name: largest widths, most positions, T1 blocks, T2 blocks. `large` is the paper's."""


def search_space(name: str, *, output_stride: int = 32, **template: Any) -> SearchSpace:
    """Return a named space; `template` sets fields of its `Architecture`."""
    if name not in SPACES:
        raise UserError(f"unknown space {name!r}: one of {', '.join(SPACES)}")
    widths, positions, t1, t2 = SPACES[name]
    n1, n2, n3, n4 = ("R" * count for count in positions)
    architecture = Architecture(
        name=name, widths=widths, blocks=(n1, n2, n3, n4), t1_blocks=t1, t2_blocks=t2, **template
    )
    return SearchSpace(template=architecture.with_stride(output_stride), positions=positions)
