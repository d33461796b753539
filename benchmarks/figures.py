"""Plots of benchmark results as SVG files; no display is needed."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from heat.views.charts import plain_numbers, save


def draw_residuals(points: Sequence[tuple[float, float]], title: str, path: Path) -> Path:
    """Plot predicted against measured milliseconds, and the error of each network."""
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


def draw_targets(points: Sequence[tuple[float, float]], title: str, path: Path) -> Path:
    """Plot measured against target frames per second, with the window of 5 %."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axis = figure.subplots()
    targets = [target for target, _ in points]
    ratios = [fps / target for target, fps in points]
    axis.axhspan(1.0, 1.05, color="tab:green", alpha=0.15)
    axis.plot(targets, ratios, "o")
    axis.set(xscale="log", xlabel="target FPS", ylabel="measured / target", title=title)
    axis.set_xticks(targets, [f"{target:g}" for target in targets])
    axis.minorticks_off()
    axis.set_ylim(min(0.95, *ratios) - 0.01, max(1.1, *ratios) + 0.01)
    axis.grid(alpha=0.3)
    return save(figure, path)


def draw_importance(points: Sequence[tuple[float, float, int]], path: Path) -> Path:
    """Plot the AP lost without a position against its importance, a colour for each seed."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axis = figure.subplots()
    for seed in sorted({seed for _, _, seed in points}):
        found = [(weight, lost) for weight, lost, own in points if own == seed]
        axis.plot(*zip(*found, strict=True), "o", markersize=5, label=f"seed {seed}")
    axis.set(xscale="log", xlabel="importance M", ylabel="AP lost without it, points")
    plain_numbers(axis.xaxis)
    axis.grid(alpha=0.3)
    axis.legend()
    return save(figure, path)


def draw_rivals(
    points: Sequence[tuple[str, int, float, float]], target_fps: float, path: Path
) -> Path:
    """Plot AP against measured FPS of (kind, seed, FPS, AP); a marker for each kind."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.axvspan(target_fps, 1.05 * target_fps, color="tab:green", alpha=0.12)
    markers = {"thinned": "*", "random": "o", "uniform": "s"}
    for index, kind in enumerate(markers):
        for seed in sorted({seed for _, seed, _, _ in points}):
            found = [(fps, ap) for own, at, fps, ap in points if (own, at) == (kind, seed)]
            if found:
                axis.plot(
                    *zip(*found, strict=True),
                    markers[kind],
                    color=f"C{index}",
                    markersize=11 if kind == "thinned" else 6,
                    fillstyle="full" if seed % 2 == 0 else "none",
                    label=f"{kind}, seed {seed}",
                )
    axis.set(xlabel="measured frames per second", ylabel="AP on val, points")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return save(figure, path)


def draw_fronts(fronts: Mapping[str, Sequence[tuple[float, float]]], unit: str, path: Path) -> Path:
    """Plot the Pareto fronts of several searches: loss against milliseconds."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for name, points in fronts.items():
        best: list[tuple[float, float]] = []
        for lost, ms in sorted(points, key=lambda point: (point[1], point[0])):
            if not best or lost < best[-1][0]:
                best.append((lost, ms))
        xs, ys = [ms for _, ms in best], [lost for lost, _ in best]
        axis.step(xs, ys, where="post", marker="o", markersize=3, label=name)
    axis.set(xlabel="predicted milliseconds", ylabel=f"lost: {unit}")
    axis.grid(alpha=0.3)
    axis.legend()
    return save(figure, path)


def draw_frontier(models: list[dict[str, Any]], title: str, path: Path) -> None:
    """Plot mean AP against milliseconds, bars from the lowest to the highest seed, ours as a line.

    Hollow markers saw fewer images.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    most = max(model["images_seen"] for model in models)
    places = sorted({model["ms"] for model in models if not model["model"].startswith("heat-")})
    line = []
    for name in dict.fromkeys(model["model"] for model in models):
        runs = [model for model in models if model["model"] == name]
        ap = [run["ap"] for run in runs]
        mean, ms = statistics.mean(ap), runs[0]["ms"]
        ours = name.startswith("heat-")
        colour = "tab:red" if ours else "tab:blue"
        whole = all(run["images_seen"] == most for run in runs)
        axis.errorbar(
            ms, mean, yerr=[[mean - min(ap)], [max(ap) - mean]], marker="o", color=colour,
            markerfacecolor=colour if whole else "none", capsize=3,
        )  # fmt: skip
        left = ms in places[::2]  # neighbours do not overlap
        by, align = (
            ((0, 9), "center") if ours else ((-7, -3), "right") if left else ((7, -3), "left")
        )
        axis.annotate(name, (ms, mean), xytext=by, textcoords="offset points", ha=align, fontsize=8)
        if ours:
            line.append((ms, mean))
    axis.plot(*zip(*sorted(line), strict=True), color="tab:red", label="HEAT")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("")
    low, high = min(run["ap"] for run in models), max(run["ap"] for run in models)
    bottom = low - 0.3 * (high - low) if low > 0.5 * high else 0.0
    axis.margins(x=0.2)
    cut_off = any(model["images_seen"] != most for model in models)
    axis.set(
        xlabel="milliseconds, one CPU thread",
        ylabel="AP on val (hollow: cut off)" if cut_off else "AP on val",
        ylim=(bottom, high + 0.15 * (high - bottom)), title=title,
    )  # fmt: skip
    axis.grid(alpha=0.3)
    save(figure, path)


def draw_elastic(rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Plot AP against frames per second, a line for each way to come to weights."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axis = figure.subplots()
    for key, label, style in (
        ("ap_scratch", "each trained from scratch", "o--"),
        ("ap_finetuned", "inherited, then a tenth of the epochs", "s-"),
        ("ap_inherited", "inherited from one training", "o-"),
    ):
        if all(key in row for row in rows):
            axis.plot([row["fps"] for row in rows], [row[key] for row in rows], style, label=label)
    axis.set(xlabel="frames per second, one CPU thread", ylabel="AP on val", title=title)
    axis.set_xscale("log")
    plain_numbers(axis.xaxis)
    axis.grid(alpha=0.3)
    axis.legend()
    save(figure, path)
