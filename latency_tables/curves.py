"""Curves of a table's blocks: milliseconds against width."""

from collections import defaultdict

from supernet.heatdetr.operators import OPERATORS

from .table import LatencyTable

Points = list[tuple[float, float]]


def block_curves(table: LatencyTable) -> dict[int, dict[str, Points]]:
    """Return, for each stride and operator, (width, ms) in order of width."""
    curves: dict[int, dict[str, Points]] = defaultdict(lambda: defaultdict(list))
    for entry, ms in table.times_ms().items():
        if OPERATORS[entry.op].keeps_map:
            curves[entry.stride][entry.op].append((entry.d_in, ms))
    return {
        stride: {op: sorted(points) for op, points in sorted(found.items())}
        for stride, found in sorted(curves.items())
    }
