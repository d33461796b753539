"""Figures of `heat report`: narrow ones, that a phone shows whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from latency_tables.curves import Points

from .charts import plain, plain_numbers
from .inline_svg import ShownFigure
from .learning import losses_in

SIZE = (5.4, 3.4)
"""Inches; text of 10 points is legible where the figure is 350 pixels wide."""
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = (
    "#3b82c4", "#e07b39", "#2a9d5c", "#d1495b", "#8e6bbf", "#8a8f98",
)  # fmt: skip
MOST_VECTORS = 1000
"""More points become pixels: a page stays small."""
STAGE_COLOURS = (BLUE, ORANGE, GREEN, PURPLE)


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate of the thinning, on the plane of frame rate and what is lost."""

    fps: float
    lost: float
    """By all moves so far and this one."""
    move: str
    chosen: bool


def draw_members(points: Sequence[tuple[str, float, float]]) -> Figure:
    """Draw networks by name, frames per second and AP."""
    figure, axes = _axes("frames per second (deployed)", "AP")
    for name, fps, ap in points:
        axes.plot(fps, ap, "o", color=BLUE)
        axes.annotate(plain(name), (fps, ap), textcoords="offset points", xytext=(6, 4), fontsize=9)
    axes.margins(x=0.25)
    axes.set_ylim(bottom=0, top=1.25 * max(ap for _, _, ap in points) or 1.0)
    return figure


def draw_plane(
    start_fps: float | None,
    trials: Sequence[Trial],
    target_fps: float,
    measured_fps: float | None,
    unit: str,
) -> Figure:
    """Draw the way of thinning: predicted frame rate to the right, what was lost downwards."""
    figure, axes = _axes("frames per second (predicted)", f"lost so far:\n{unit}")
    others = [trial for trial in trials if not trial.chosen]
    axes.plot(
        [t.fps for t in others], [t.lost for t in others], ".", color=GREY, alpha=0.6,
        label="scored, not taken", rasterized=len(others) > MOST_VECTORS,
    )  # fmt: skip
    chosen = [trial for trial in trials if trial.chosen]
    way = [(trial.fps, trial.lost) for trial in chosen]
    if start_fps is not None:
        way.insert(0, (start_fps, 0.0))
        axes.annotate(
            "whole supernet", way[0], textcoords="offset points", xytext=(6, 6), fontsize=8
        )
    if way:
        axes.plot(*zip(*way, strict=True), "-o", color=BLUE, markersize=4, label="taken")
    for trial in chosen if len(chosen) <= 12 else ():
        axes.annotate(
            trial.move, (trial.fps, trial.lost), textcoords="offset points", xytext=(6, 4),
            fontsize=8,
        )  # fmt: skip
    axes.axvline(target_fps, color=RED, linestyle="--", label="target")
    if measured_fps is not None and way:
        axes.plot([measured_fps], [way[-1][1]], "*", color=GREEN, markersize=13, label="measured")
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.12)
    axes.legend(fontsize=8, loc="best")
    return figure


def draw_importance(
    epochs: Sequence[int], importance: Mapping[tuple[int, int], Sequence[float]]
) -> Figure:
    """Draw M of every (stage from 1, position) over the epochs, a colour for each stage."""
    figure, axes = _axes("epoch", "importance M = (1 - p_I) / p_I")
    named: set[int] = set()
    for (stage, _), values in importance.items():
        colour = STAGE_COLOURS[(stage - 1) % len(STAGE_COLOURS)]
        label = None if stage in named else f"stage {stage}"
        named.add(stage)
        axes.plot(
            epochs, values, color=colour, linewidth=1.2, label=label,
            marker="." if len(epochs) == 1 else "",
        )  # fmt: skip
    axes.set_yscale("log")
    plain_numbers(axes.yaxis)
    axes.legend(fontsize=8)
    return figure


def draw_blocks(stride: int, curves: Mapping[str, Points], names: Mapping[str, str]) -> Figure:
    """Draw milliseconds against width of the blocks of one stride; `names` by operator."""
    figure, axes = _axes("width (channels)", "milliseconds")
    for op, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=names.get(op, op))
    axes.set_ylim(0, None)
    axes.set_title(f"stride {stride}", fontsize=10)
    axes.legend(fontsize=8)
    return figure


def draw_losses(history: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Draw the terms of the loss over the epochs; None where none is known."""
    return _over_epochs(history, losses_in(history), "loss")


def draw_ap(history: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Draw AP and AP50 on val over the epochs; None where they were not evaluated."""
    return _over_epochs(history, {"ap": "AP", "ap50": "AP50"}, "AP on val", ".")


def _over_epochs(
    history: Sequence[Mapping[str, Any]], terms: Mapping[str, str], label: str, marker: str = ""
) -> Figure | None:
    lines = [
        (name, [(row["epoch"], row[key]) for row in history if row.get(key) is not None])
        for key, name in terms.items()
    ]
    if not any(points for _, points in lines):
        return None
    figure, axes = _axes("epoch", label)
    for name, points in lines:
        if points:
            marked = marker or ("." if len(points) == 1 else "")
            axes.plot(*zip(*points, strict=True), label=plain(name), marker=marked)
    axes.set_ylim(0, None)
    axes.legend(fontsize=8)
    return figure


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    with rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = ShownFigure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        axes.set(xlabel=x, ylabel=plain(y))
        axes.grid(alpha=0.25)
        return figure, axes


def draw_speeds(fps: Mapping[str, float]) -> Figure:
    """Draw frame rates by name, with a line at the target."""
    figure, axes = _axes("frames per second", "")
    names = list(fps)[::-1]
    bars = axes.barh(names, [fps[name] for name in names], color=BLUE)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    if "target" in fps:
        axes.axvline(fps["target"], color=RED, linestyle="--")
    axes.margins(x=0.12)
    return figure


def draw_class_ap(ap: Mapping[str, float | None]) -> Figure:
    """Draw AP of each class, the best on top; classes without objects are left out."""
    figure, axes = _axes("AP", "")
    known = sorted((value, plain(name)) for name, value in ap.items() if value is not None)
    axes.barh([name for _, name in known], [value for value, _ in known], color=BLUE)
    axes.set_xlim(0, 1)
    return figure
