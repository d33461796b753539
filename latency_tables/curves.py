"""What a table says about each block: milliseconds against width."""

from collections import defaultdict

from supernet.architecture import GLOBAL_KINDS

from .table import LatencyTable

BLOCKS = ("repcnn", "wmsa", "swmsa", *GLOBAL_KINDS)
"""Operators that keep their map."""

Points = list[tuple[float, float]]


def block_curves(table: LatencyTable) -> dict[int, dict[str, Points]]:
    """Return, for each stride and operator, (width, ms) in order of width."""
    curves: dict[int, dict[str, Points]] = defaultdict(lambda: defaultdict(list))
    for entry, ms in table.times_ms().items():
        if entry.op in BLOCKS:
            curves[entry.stride][entry.op].append((entry.d_in, ms))
    return {
        stride: {op: sorted(points) for op, points in sorted(found.items())}
        for stride, found in sorted(curves.items())
    }
