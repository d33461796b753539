"""Figures of latency tables, thinning and races: SVG files, drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter

from deploy.side_by_side import Lap
from latency_tables.curves import block_curves
from latency_tables.table import LatencyTable
from supernet.atomic import replacing

from .inline_svg import ShownFigure
from .outputs import DRAWN_BY


def plain(name: str) -> str:
    """Return a name as matplotlib writes it unchanged: `$` would begin mathematics.

    Names that begin with `_` would be left out of legends.
    """
    return (f" {name}" if name.startswith("_") else name).replace("$", r"\$")


def table_figure(table: LatencyTable) -> Figure:
    """Draw milliseconds against width of every block, a panel for each stride."""
    curves = block_curves(table)
    figure = ShownFigure(figsize=(3.6 * max(1, len(curves)), 3.6), layout="constrained")
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
    """Save the figure of a table."""
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


def draw_race(laps: Sequence[Lap], title: str, path: Path) -> Path:
    """Draw the median latency of models that were timed in turns, with their 95th percentile."""
    figure = Figure(figsize=(7.5, 1.2 + 0.4 * len(laps)), layout="constrained")
    axis = figure.subplots()
    ordered = sorted(laps, key=lambda lap: -lap.p50_ms)
    names, medians = [plain(lap.name) for lap in ordered], [lap.p50_ms for lap in ordered]
    tails = [[0.0] * len(ordered), [lap.p95_ms - lap.p50_ms for lap in ordered]]
    bars = axis.barh(names, medians, xerr=tails, error_kw={"elinewidth": 0.8, "capsize": 2})
    axis.bar_label(bars, fmt="%.1f", padding=6)
    axis.set(xlabel="milliseconds, median and 95th percentile")
    axis.margins(x=0.15)
    figure.suptitle(title, fontsize=10)
    return save(figure, path)


def draw_frontier(points: Sequence[tuple[float, float, str]], unit: str, path: Path) -> Path:
    """Draw what is lost against frames per second, with the kind of each move."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.plot([fps for fps, _, _ in points], [lost for _, lost, _ in points], color="grey", lw=0.8)
    kinds: dict[str, list[tuple[float, float]]] = {}
    for fps, lost, move in points:
        kinds.setdefault(move.split()[0], []).append((fps, lost))
    for kind, found in kinds.items():
        axis.plot(*zip(*found, strict=True), "o", markersize=4, label=kind)
    axis.set(xscale="log", xlabel="predicted frames per second", ylabel=f"lost: {unit}")
    plain_numbers(axis.xaxis)
    axis.grid(alpha=0.3)
    axis.legend()
    return save(figure, path)


def draw_logits(
    epochs: Sequence[int],
    logits: Mapping[str, Sequence[Sequence[float]]],
    labels: Sequence[str],
    importance: Mapping[str, float],
    path: Path,
) -> Path:
    """Draw r of every position over the epochs, a panel each, and the final importance.

    `logits` holds, by position's name, the logits of each epoch.
    """
    columns = 6
    rows = -(-len(logits) // columns)
    figure = Figure(figsize=(2.2 * columns, 1.6 * rows + 3), layout="constrained")
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.6 * rows, 3))
    top, bottom = parts[0, 0], parts[1, 0]
    axes = top.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for axis, (name, found) in zip(axes, logits.items(), strict=False):
        for index, label in enumerate(labels):
            axis.plot(epochs, [r[index] for r in found], label=label, linewidth=1)
        axis.set_title(name, fontsize=8)
        axis.tick_params(labelsize=6)
    axes[0].legend(fontsize=6)
    top.suptitle("selection logits r over the epochs", fontsize=10)
    axis = bottom.subplots()
    axis.bar(list(importance), list(importance.values()))
    axis.set(title="importance M = (1 - p_I) / p_I of each position", yscale="log")
    axis.tick_params(axis="x", rotation=90, labelsize=7)
    return save(figure, path)


def draw_explanation(
    importance: Mapping[tuple[int, int], float],
    kept: Mapping[tuple[int, int], str],
    steps: Sequence[tuple[str, int, float]],
    target_fps: float,
    path: Path,
) -> Path:
    """Draw every position with its importance, what is left of it, and the way to the target.

    Places are (stage from 1, position); steps are (move, stage, FPS).
    """
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    largest = max(importance.values(), default=1.0)
    for (stage, position), value in importance.items():
        letter = kept.get((stage, position))
        shade = 0.15 + 0.85 * value / largest
        color = (0.2, 0.45, 0.75, shade) if letter else (0.75, 0.75, 0.75, 0.4)
        left.add_patch(Rectangle((position - 0.45, -stage - 0.4), 0.9, 0.8, color=color))
        left.text(
            position, -stage, letter or "", ha="center", va="center", fontsize=9, weight="bold"
        )
        left.text(position, -stage - 0.36, f"{value:.1f}", ha="center", va="bottom", fontsize=5)
    longest = max((position for _, position in importance), default=0)
    left.set(xlim=(-0.7, longest + 0.7), ylim=(-4.6, -0.4), xlabel="position")
    left.set_yticks([-1, -2, -3, -4], ["S1", "S2", "S3", "S4"])
    left.set_title("positions: kept operator, importance M (grey: deleted)", fontsize=9)
    for stage in (1, 2, 3, 4):
        points = [(n, fps) for n, (_, at, fps) in enumerate(steps) if at == stage]
        if points:
            right.plot(*zip(*points, strict=True), "o", markersize=4, label=f"S{stage}")
    right.axhline(target_fps, color="tab:green", linewidth=0.8)
    right.set(xlabel="move", ylabel="frames per second")
    right.set_title("the way to the target, by the stage that was thinned", fontsize=9)
    if steps:
        right.legend(fontsize=8)
    right.grid(alpha=0.3)
    return save(figure, path)


def plain_numbers(axis: Axis) -> None:
    """Label a logarithmic axis with 1, 2, 5, 10 rather than with powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def save(figure: Figure, path: Path) -> Path:
    """Write an SVG, whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Creator": DRAWN_BY})
    return path
