"""What people read in the terminal: tables on stderr."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
from rich.table import Table
from rich.text import Text

from latency_tables.compare import Comparison
from latency_tables.curves import block_curves
from latency_tables.device_file import Device
from latency_tables.probe.machine import Detected, Gpu
from latency_tables.table import LatencyTable
from supernet.counting import count_macs, count_params
from supernet.data.check import class_problems, image_problems, training_problems
from supernet.data.coco import load_split, splits_of
from supernet.heatdetr.anchor_fit import FITTING, AnchorFit, anchor_fit
from supernet.heatdetr.architecture import Architecture, preset
from supernet.heatdetr.operators import OPERATORS

from ..records import Result
from .terminal import terminal

BAR = 8
"""Characters of the longest bar."""


class RaceRow(TypedDict):
    """A model of `heat bench`."""

    model: str
    runtime: str
    precision: str
    threads: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    fps: float
    times_first: float
    """Latency as a multiple of the first model's."""
    peak_mb: float
    start_ms: float
    """From the start of its process to its first result."""
    runs: int
    inputs: str
    throughput_fps: NotRequired[float]
    """With `--throughput`: frames a second of one request on every core."""
    streams: NotRequired[int]
    """Requests of that."""


def print_race(rows: Sequence[RaceRow]) -> None:
    """Print models that were timed in turns."""
    table = Table(title="side by side, batch 1")
    crowd = "throughput_fps" in rows[0]
    table.add_column("model")
    for column in ("runtime", "p50 ms", "p95", "p99", "FPS", "x first", "peak MiB", "start ms"):
        table.add_column(column, justify="right")
    if crowd:
        table.add_column(f"FPS, {rows[0]['streams']} streams", justify="right")
    for row in rows:
        cells = [
            row["model"],
            f"{row['runtime']} {row['precision']} x{row['threads']}",
            f"{row['p50_ms']:.2f}",
            f"{row['p95_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            f"{row['fps']:.1f}",
            f"{row['times_first']:.2f}",
            f"{row['peak_mb']:.0f}",
            f"{row['start_ms']:.0f}",
        ]
        table.add_row(*cells, *([f"{row['throughput_fps']:.1f}"] if crowd else []))
    terminal().print(table)


def describe_architecture(architecture: Architecture) -> None:
    """Print every place of a network with its map, multiply-adds and parameters."""
    height, width = architecture.input_size
    table = Table(title=f"{architecture.name} at {height}x{width}")
    for column in ("place", "operator", "widths", "stride", "map"):
        table.add_column(column)
    for column in ("MMACs conv", "MMACs attention", "params"):
        table.add_column(column, justify="right")
    for place, entry in architecture.entries().items():
        operator = OPERATORS[entry.op]
        macs = operator.macs(entry)
        same = entry.d_in == entry.d_out
        table.add_row(
            place,
            entry.op,
            str(entry.d_in) if same else f"{entry.d_in} -> {entry.d_out}",
            str(entry.stride),
            f"{entry.h}x{entry.w}",
            f"{macs.conv_linear / 1e6:,.2f}",
            f"{macs.attention / 1e6:,.2f}",
            f"{operator.params(entry):,}",
        )
    total = count_macs(architecture)
    table.add_section()
    table.add_row(
        "all",
        "",
        " ".join(str(width) for width in architecture.widths),
        "",
        "",
        f"{total.conv_linear / 1e6:,.2f}",
        f"{total.attention / 1e6:,.2f}",
        f"{count_params(architecture):,}",
    )
    terminal().print(table)


def list_devices(
    devices: list[Device], cpu: Detected, gpus: tuple[Gpu, ...], runtimes: dict[str, str | None]
) -> None:
    """Print the known devices, which of them is this machine, and what can be done with each."""
    quota = f", quota {cpu.quota:g} cores" if cpu.quota else ""
    table = Table(
        title=f"this machine: {cpu.model}, {cpu.cores} cores{quota}, governor {cpu.governor}, "
        f"{' '.join(cpu.flags)}"
    )
    for column in ("device", "means", "runtime", "precision", "threads", "here", "otherwise"):
        table.add_column(column)
    for device in devices:
        here = [cpu.model] if device.kind == "cpu" else [gpu.model for gpu in gpus]
        found = any(re.search(device.pattern, name, re.I) for name in here)
        if device.kind == "cpu" and not found:
            state = "measured as what it is"
        elif found and runtimes.get(device.runtime) is None:
            state = f"yes, but {device.runtime} is not installed"
        else:
            state = "yes" if found else "no"
        ways = ["--host", "--pack"] + (["--estimate"] if device.figures else [])
        table.add_row(
            device.name,
            device.title,
            device.runtime,
            device.precision,
            str(device.threads or "all"),
            state,
            " ".join(ways),
        )
    console = terminal()
    console.print(table)
    for gpu in gpus:
        console.print(f"GPU: {gpu.model}, driver {gpu.driver}, {gpu.clocks}, {gpu.memory_mb} MiB")
    installed = [f"{name} {version or 'not installed'}" for name, version in runtimes.items()]
    console.print(f"runtimes: {', '.join(installed)}", soft_wrap=True)


def check_data(
    root: Path, input_size: tuple[int, int] = (448, 448), strides: Sequence[int] = (32, 16, 8)
) -> Result:
    """Print counts, classes, fit of anchors and problems of every split; decode every image."""
    console = terminal()
    splits: dict[str, Result] = {}
    found: list[Result] = []
    sets = [load_split(root, split) for split in splits_of(root)]
    train = next((data for data in sets if data.split.startswith("train")), sets[0])
    for data in sets:
        problems = [*data.problems, *class_problems(train, data), *image_problems(data)]
        if data.split.startswith("train"):
            problems += training_problems(data)
        counts = np.zeros(data.num_classes, dtype=int)
        for record in data.records:
            np.add.at(counts, record.labels, 1)
        title = f"{root.absolute().name} {data.split}: {len(data.records)} images"
        table = Table(title=title)
        for column in ("class", "COCO id", "name", "boxes"):
            table.add_column(column, justify="right" if column != "name" else "left")
        for index, name in enumerate(data.names):
            table.add_row(str(index), str(data.category_ids[index]), name, str(counts[index]))
        console.print(table)
        empty = sum(not len(r.labels) for r in data.records)
        negative = sum(not len(r.labels) and not r.crowds for r in data.records)
        console.print(
            f"{data.num_crowd} crowd regions, {negative} negative images (nothing in them), "
            f"{empty - negative} images with crowds only"
        )
        fits = [anchor_fit(data, input_size, preset("medium").with_stride(s)) for s in strides]
        for fit in fits if counts.any() else ():
            console.print(_fit_line(fit, input_size), soft_wrap=True)
        for problem in problems:
            kind = Text(problem.kind, "bold")
            console.print(kind + f" at {problem.where}: {problem.detail}", soft_wrap=True)
        splits[data.split] = {
            "images": len(data.records),
            "boxes": int(counts.sum()),
            "crowd": data.num_crowd,
            "without_boxes": empty,
            "negative": negative,
            "names": list(data.names),
            "anchors": [asdict(fit) for fit in fits],
        }
        found.extend(
            {"split": data.split, "kind": p.kind, "where": p.where, "detail": p.detail}
            for p in problems
        )
    return {"data": str(root), "splits": splits, "problems": found}


def _fit_line(fit: AnchorFit, input_size: tuple[int, int]) -> str:
    """Say how many boxes no anchor fits, and of which size they are."""
    height, width = input_size
    sizes = ", ".join(
        f"{unfit} of {count} {name}" for name, (unfit, count) in fit.unfit_by_size.items() if count
    )
    return (
        f"at {height}x{width}, output stride {fit.stride}: {fit.unfit} of {fit.boxes} boxes "
        f"({100 * fit.share:.0f} %) have no anchor with IoU >= {FITTING:g} ({sizes})"
    )


def show_blocks(table: LatencyTable) -> None:
    """Print milliseconds of every block by width, with bars, a table for each stride."""
    console = terminal()
    for stride, curves in block_curves(table).items():
        c = table.conditions
        mark = " ESTIMATED" if table.estimated else ""
        shown = Table(title=f"{c.stem}{mark}: milliseconds at stride {stride}")
        shown.add_column("width", justify="right")
        for op in curves:
            shown.add_column(op, justify="right")
        longest = max(ms for points in curves.values() for _, ms in points)
        widths = sorted({width for points in curves.values() for width, _ in points})
        for width in widths:
            cells = []
            for points in curves.values():
                ms = dict(points).get(width)
                bar = "" if ms is None else "#" * round(BAR * ms / max(longest, 1e-9))
                cells.append("" if ms is None else f"{bar:<{BAR}} {ms:.3f}")
            shown.add_row(str(int(width)), *cells)
        console.print(shown)


def show_importance(
    importance: Mapping[str, float],
    logits: Mapping[str, Sequence[float]],
    candidates: Sequence[str],
) -> None:
    """Print r of every position and its importance, with bars."""
    shown = Table(title="selection logits r, and importance M = (1 - p_I) / p_I")
    shown.add_column("position")
    for name in candidates:
        shown.add_column(name, justify="right")
    shown.add_column("M", justify="right")
    shown.add_column("")
    largest = max(importance.values())
    for place, value in importance.items():
        cells = [f"{r:+.3f}" for r in logits[place]]
        bar = "#" * round(2 * BAR * value / largest)
        shown.add_row(place, *cells, f"{value:.2f}", bar)
    terminal().print(shown)


def show_stacks(stacks: dict[str, float], name: str) -> None:
    """Print frames per second of the stacks of Figure 2."""
    shown = Table(title=f"stacks of 12 layers, {name}")
    for column in ("stack", "FPS", "ms"):
        shown.add_column(column, justify="left" if column == "stack" else "right")
    for stack, ms in sorted(stacks.items(), key=lambda item: item[1]):
        shown.add_row(stack, f"{1000 / ms:.1f}", f"{ms:.2f}")
    terminal().print(shown)


def compare_operators(found: Comparison, first: str, second: str) -> None:
    """Print how two tables differ, operator by operator."""
    shown = Table(title=f"B / A at equal speed: {second} / {first}")
    for column in ("operator", "median B / A"):
        shown.add_column(column, justify="left" if column == "operator" else "right")
    for op, ratio in found.by_operator.items():
        shown.add_row(op, f"{ratio:.3f}")
    terminal().print(shown)
