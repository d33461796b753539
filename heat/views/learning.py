"""Figures of training and of what was learnt: curves, precision and recall, mistakes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from supernet.checkpoint import EpochRow
from supernet.data.average_precision import Scores
from supernet.data.reliability import Bin

from .charts import plain, save

MAX_SIDE_INCHES = 24.0
"""Of a confusion matrix; a thousand classes at full size would take gigabytes to draw."""
LOSSES = {
    "boxes": "boxes (GIoU)",
    "sides": "sides of boxes (DFL)",
    "l1": "boxes (L1)",
    "giou": "boxes (GIoU)",
    "distance": "distance to the exact branch (MTKD)",
}
"""Terms of losses that are not drawn by their own name."""
NO_LOSSES = frozenset(EpochRow.__annotations__)
"""What else the rows of a training hold."""


def losses_in(history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the terms of the loss that a training recorded, and what they are called."""
    terms = dict.fromkeys(key for row in history for key in row if key not in NO_LOSSES)
    return {term: LOSSES.get(term, term.replace("_", " ")) for term in terms}


def draw_learning(history: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draw losses, learning rate and AP over the epochs."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    losses = losses_in(history)
    panels = (tuple(losses), ("ap", "ap50"), ("learning_rate",))
    for axis, keys in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for key in keys:
            points = [(row["epoch"], row[key]) for row in history if key in row]
            if points:
                axis.plot(
                    *zip(*points, strict=True),
                    label=losses.get(key, key),
                    marker="." if "ap" in key else "",
                )
                axis.legend()
        axis.set(xlabel="epoch", ylim=(0, None))
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("loss")
    return save(figure, path)


def draw_precision(scores: Scores, names: Sequence[str], path: Path) -> Path:
    """Draw precision against recall at IoU 0.5, a line for each class, the mean thick."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axis = figure.subplots()
    recall = np.linspace(0, 1, 101)
    curves = scores.precision_TRK[0].T
    known = [curve for curve in curves if curve.min() > -1]
    for name, curve in zip(names, curves, strict=True):
        if curve.min() > -1:
            label = f"{plain(name)} {curve.mean():.3f}" if len(names) <= 20 else None
            axis.plot(recall, curve, linewidth=1, label=label)
    if known:
        mean = np.mean(known, axis=0)
        axis.plot(recall, mean, color="black", linewidth=2.5, label=f"all {mean.mean():.3f}")
        axis.legend(fontsize=8, title="AP50")
    axis.set(xlabel="recall", ylabel="precision at IoU 0.5", xlim=(0, 1), ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    return save(figure, path)


def draw_confusion(counts: npt.NDArray[np.int64], names: Sequence[str], path: Path) -> Path:
    """Draw a confusion matrix, shares of each row; the numbers are counts."""
    labels = [*map(plain, names), "nothing"]
    side = min(max(4.0, 0.32 * len(labels) + 2), MAX_SIDE_INCHES)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if side < MAX_SIDE_INCHES:
        axis.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
        axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.set(xlabel="found", ylabel="truth")
    if len(labels) <= 25:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                ink = "white" if shares[row, column] > 0.5 else "black"
                axis.text(column, row, str(count), ha="center", va="center", color=ink, fontsize=7)
    return save(figure, path)


def draw_reliability(bins: Sequence[Bin], path: Path) -> Path:
    """Draw the precision of detections against their score; on the diagonal scores are shares."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], "--", color="#bbb", label="scores that are shares")
    axis.plot([b.score for b in bins], [b.precision for b in bins], "-o", color="#4c78a8")
    for each in bins:
        axis.annotate(
            str(each.count), (each.score, each.precision), textcoords="offset points",
            xytext=(5, -10), fontsize=7,
        )  # fmt: skip
    axis.set(xlabel="score", ylabel="share that is right (IoU 0.5)", xlim=(0, 1), ylim=(0, 1))
    axis.legend(loc="upper left", fontsize=8)
    return save(figure, path)
