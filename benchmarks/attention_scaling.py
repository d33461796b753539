"""Milliseconds and memory of self-attention against the number of tokens.

    python benchmarks/attention_scaling.py --runtime openvino --name openvino

A layer of 256 channels and 8 heads with its four projections, batch 1: all pairs (SDPA in torch),
ACT with at most 1/2, 1/4, 1/8 of the tokens as clusters, and with 256 clusters whatever the tokens,
ENACT and average pooling with windows of 6. All are the static graphs that are deployed. At each
size the layers run in one race, a process for each; torch's are timed in turns in fresh processes
too. Exponents are fitted over the three largest sizes; a crossover is the smallest size from which
on a layer is faster than all pairs, on the line between two sizes. Memory is the process's peak
beyond that of the smallest size. With --runtime torch memory kept for the gradient is reported too.
The last line is one JSON object; with --name it goes to benchmarks/results/attention-scaling/, and
a figure beside it.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from result import RESULTS, here, tell
from torch import Tensor

from deploy.edge.bench import own_peak_mb
from deploy.side_by_side import Entrant, race
from heat.views.charts import save
from supernet.attention import ActAttention, Attention, EnactAttention, PoolAttention
from supernet.detr.transformer import MultiheadAttention
from supernet.graph.style import GraphStyle
from supernet.graph.writer import GraphWriter

WIDTH, HEADS = 256, 8
SIZES = (256, 512, 1024, 2048, 4096, 8192)
FIXED = 256
WINDOW = 6
KINDS = ("exact", "act 1/2", "act 1/4", "act 1/8", f"act {FIXED}", "enact 6", "pool 6")


def core_of(kind: str, tokens: int) -> Attention:
    """Return an attention core by its name."""
    name, _, size = kind.partition(" ")
    if name == "act":
        bound = tokens // int(size[2:]) if "/" in size else int(size)
        return ActAttention(WIDTH // HEADS, most=min(bound, tokens))
    if name == "enact":
        return EnactAttention(WIDTH, int(size))
    return PoolAttention(int(size)) if name == "pool" else Attention()


def layer_of(kind: str, tokens: int) -> MultiheadAttention:
    """Return a layer with random weights."""
    torch.manual_seed(0)
    return MultiheadAttention(WIDTH, HEADS, core_of(kind, tokens)).eval()


def write(kind: str, tokens: int, path: Path, runtime: str) -> None:
    """Write a layer's graph."""
    graph = GraphWriter(GraphStyle.of(runtime))
    x = graph.input("x", (1, tokens, WIDTH))
    y = layer_of(kind, tokens).emit(graph, x, x, x)
    path.write_bytes(graph.model([("y", y, "float32")]).SerializeToString())


@torch.inference_mode()
def one_in_torch(kind: str, tokens: int, threads: int) -> dict[str, float]:
    """Time a layer in this process."""
    torch.set_num_threads(threads)
    layer, x = layer_of(kind, tokens), torch.randn(1, tokens, WIDTH)
    for _ in range(2):
        layer(x, x, x)
    times: list[float] = []
    while len(times) < 5 or sum(times) < 0.5:
        start = time.perf_counter()
        layer(x, x, x)
        times.append(time.perf_counter() - start)
    return {"ms": 1e3 * statistics.median(times), "peak_mb": own_peak_mb()}


def race_in_torch(tokens: int, threads: int, rounds: int) -> dict[str, dict[str, float]]:
    """Time every layer in fresh processes, in turns."""
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            done = subprocess.run(
                [sys.executable, __file__, "--one", kind, str(tokens), "--threads", str(threads)],
                check=True, capture_output=True, text=True, env=dict(os.environ),
            )  # fmt: skip
            found[kind].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        kind: {key: statistics.median(row[key] for row in rows) for key in ("ms", "peak_mb")}
        for kind, rows in found.items()
    }


def race_in_runtime(
    tokens: int, runtime: str, threads: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Time every layer's graph in one race."""
    with tempfile.TemporaryDirectory() as folder:
        entrants = []
        for index, kind in enumerate(KINDS):
            path = Path(folder) / f"{index}.onnx"
            write(kind, tokens, path, runtime)
            entrants.append(Entrant(name=kind, model=path, runtime=runtime, threads=threads))
        laps = race(entrants, rounds=rounds)
    return {lap.name: {"ms": lap.p50_ms, "peak_mb": lap.peak_mb} for lap in laps}


def kept_for_gradient(tokens: int) -> dict[str, float]:
    """Return MiB that each core keeps for the gradient, and those of materialised attention."""

    def kept(run: Any) -> float:
        sizes: dict[int, int] = {}

        def keep(t: Tensor) -> Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            run()
        return round(sum(sizes.values()) / 2**20, 2)

    x = torch.randn(1, tokens, WIDTH, requires_grad=True)

    def heads(y: Tensor) -> Tensor:
        return y.view(1, -1, HEADS, WIDTH // HEADS).transpose(1, 2)

    def materialised() -> Tensor:
        q, k, v = heads(x * 0.18), heads(x * 1.0), heads(x * 1.0)
        return torch.dropout((q @ k.transpose(2, 3)).softmax(-1), 0.1, True) @ v

    def by(core: Attention) -> Tensor:
        k, v, _ = core.condense(x * 1.0, x * 1.0)
        return core.attend(heads(x * 0.18), heads(k), heads(v))

    return {
        "materialised": kept(materialised),
        "sdpa": kept(lambda: by(Attention())),
        "enact": kept(lambda: by(EnactAttention(WIDTH, WINDOW))),
        "pool": kept(lambda: by(PoolAttention(WINDOW))),
        "act 1/4": kept(lambda: by(core_of("act 1/4", tokens))),
    }


def exponent(sizes: list[int], values: list[float]) -> float:
    """Return the slope of log time against log tokens over the three largest sizes."""
    x, y = np.log(sizes[-3:]), np.log(values[-3:])
    return round(float(np.polyfit(x, y, 1)[0]), 3)


def crossover(sizes: list[int], values: list[float], exact: list[float]) -> float | None:
    """Return the number of tokens from which on a layer is the faster one; None if it never is."""
    gaps = [math.log(a / b) for a, b in zip(values, exact, strict=True)]
    if gaps[-1] >= 0:
        return None
    for (low, before), (high, after) in reversed(list(pairwise(zip(sizes, gaps, strict=True)))):
        if before >= 0:
            share = before / (before - after)
            return round(math.exp(math.log(low) + share * math.log(high / low)))
    return sizes[0]


def draw(sizes: list[int], rows: dict[str, dict[str, list[float]]], title: str, path: Path) -> None:
    """Plot time and memory against tokens."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axis, key, label in zip(
        figure.subplots(1, 2), ("ms", "mib"), ("milliseconds", "MiB more than at 256 tokens"),
        strict=True,
    ):  # fmt: skip
        first = 1 if key == "mib" else 0
        for kind, row in rows.items():
            axis.plot(sizes[first:], np.maximum(row[key][first:], 1), marker="o", label=kind)
        axis.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label, title=title)
        axis.set_xticks(sizes, labels=[str(size) for size in sizes], minor=False)
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
    axis.legend()
    save(figure, path)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", choices=("torch", "onnxruntime", "openvino"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        kind, tokens = options.one
        print(json.dumps(one_in_torch(kind, int(tokens), options.threads)))
        return
    runtime, threads = options.runtime, options.threads
    sizes = [int(size) for size in options.sizes.split(",")]
    rows: dict[str, dict[str, list[float]]] = {kind: {"ms": [], "mib": []} for kind in KINDS}
    for tokens in sizes:
        found = (
            race_in_torch(tokens, threads, options.rounds)
            if runtime == "torch"
            else race_in_runtime(tokens, runtime, threads, options.rounds)
        )
        for kind, row in found.items():
            rows[kind]["ms"].append(round(row["ms"], 3))
            rows[kind]["mib"].append(round(row["peak_mb"], 1))
        print(tokens, {kind: rows[kind]["ms"][-1] for kind in KINDS}, file=sys.stderr)
    exact = rows["exact"]["ms"]
    for kind, row in rows.items():
        least = row["mib"][0]
        row["mib"] = [round(mib - least, 1) for mib in row["mib"]]
        row["speedup"] = [round(a / b, 3) for a, b in zip(exact, row["ms"], strict=True)]
        row["exponent"] = exponent(sizes, row["ms"])  # type: ignore[assignment]
        if kind != "exact":
            row["crossover"] = crossover(sizes, row["ms"], exact)  # type: ignore[assignment]
    result: dict[str, Any] = {"tokens": sizes, "layers": rows}
    if runtime == "torch":
        result["kept_for_gradient_mib"] = {n: kept_for_gradient(n) for n in (850, 2100)}
    conditions = here(runtime, threads, (0, 0))
    result |= {k: v for k, v in conditions.items() if k not in ("height", "width")}
    path = RESULTS / "attention-scaling" / f"{options.name}.json" if options.name else None
    tell(result, path)
    if path is not None:
        draw(sizes, rows, f"{runtime}, {threads} thread(s)", path.with_suffix(".svg"))


if __name__ == "__main__":
    main()
