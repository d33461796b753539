"""Pictures of latency tables: SVG files, drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from latency_tables.curves import block_curves
from latency_tables.table import LatencyTable
from supernet.atomic import replacing


def table_figure(table: LatencyTable) -> Figure:
    """Draw milliseconds against width of every block, a panel for each stride."""
    curves = block_curves(table)
    figure = Figure(figsize=(3.6 * max(1, len(curves)), 3.6), layout="constrained")
    axes = figure.subplots(1, max(1, len(curves)), squeeze=False)[0]
    for axis, (stride, found) in zip(axes, curves.items(), strict=False):
        for op, points in found.items():
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=op)
        axis.set(title=f"stride {stride}", xlabel="width (channels)", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("milliseconds")
    axes[0].legend()
    c = table.conditions
    estimated = "ESTIMATED " if table.estimated else ""
    figure.suptitle(
        f"{estimated}{c.model}, {c.runtime} {c.runtime_version}, {c.precision}, {c.threads} "
        f"thread(s), {c.height}x{c.width}",
        fontsize=10,
    )
    return figure


def draw_table(table: LatencyTable, path: Path) -> Path:
    """Save the picture of a table."""
    return save(table_figure(table), path)


def draw_stacks(stacks: Mapping[str, float], title: str, path: Path) -> Path:
    """Draw the paper's Figure 2: frames per second of stacks of twelve layers."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    draw_bars(axis, [(name, 1000.0 / ms) for name, ms in stacks.items()])
    axis.set_xlabel("frames per second, stack of 12 layers")
    figure.suptitle(title, fontsize=10)
    return save(figure, path)


def draw_bars(axis: Axes, values: Sequence[tuple[str, float]]) -> None:
    """Draw labelled horizontal bars, the fastest on top."""
    ordered = sorted(values, key=lambda item: item[1])
    bars = axis.barh([name for name, _ in ordered], [value for _, value in ordered])
    axis.bar_label(bars, fmt="%.0f", padding=3)
    axis.margins(x=0.1)


def draw_residuals(points: Sequence[tuple[float, float]], title: str, path: Path) -> Path:
    """Draw predicted against measured milliseconds, and the error of each network."""
    figure = Figure(figsize=(8, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    predicted, measured = zip(*points, strict=True)
    largest = max(*predicted, *measured)
    left.plot([0, largest], [0, largest], color="grey", linewidth=0.8)
    left.plot(measured, predicted, "o", markersize=4)
    left.set(xlabel="measured ms", ylabel="predicted ms")
    errors = [100 * (p / m - 1) for p, m in points]
    right.axhspan(-3, 3, color="tab:green", alpha=0.15)
    for bound in (-8, 8):
        right.axhline(bound, color="tab:red", linewidth=0.8)
    right.plot(measured, errors, "o", markersize=4)
    right.set(xlabel="measured ms", ylabel="error, %")
    figure.suptitle(title, fontsize=10)
    return save(figure, path)


def save(figure: Figure, path: Path) -> Path:
    """Write an SVG, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="svg")
    return path
