"""Does thinning beat random choice? Trains its network and others of the same frame rate.

    python benchmarks/search_quality.py --data DIR --fps 24 --seeds 2 --name bccd

For each seed a supernet is trained and thinned to the target. The rivals are --randoms random
networks of the same space and one uniform scaling of the whole space's widths. All of them are
measured between the target and 5 % above it (the uniform one as near above it as whole heads
allow), trained from scratch with the same settings, and scored on val. With --out the rivals of a
seed are kept too: measured again, others would be chosen. The last line is JSON.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import draw_rivals
from kept_runs import read_kept, settings_of
from result import here, tell

from heat.spaces import search_space
from heat.stages.evaluate import evaluate_checkpoint
from heat.stages.supernet import train_supernet
from heat.stages.thin import thin
from heat.stages.train import train
from heat.thinning.candidates import Candidate
from heat.thinning.limits import Limits
from heat.thinning.measuring import NetworkMeter, measure_state
from heat.thinning.moves import State, prior_logits
from heat.thinning.settle import OVERSHOOT
from heat.workspace import Workspace
from latency_tables.devices import Target, resolve
from latency_tables.networks import random_architecture
from latency_tables.store import open_table
from latency_tables.table import LatencyTable
from latency_tables.table_file import write_table
from supernet.atomic import write_text
from supernet.counting import count_macs
from supernet.data.coco import load_split
from supernet.heatdetr.architecture import WIDTH_STEP, Architecture
from supernet.heatdetr.input_size import parse_size
from supernet.heatdetr.supernet import SearchConfig, SearchSpace
from supernet.train.recipes import SUPERNET, TrainConfig
from supernet.train.running import Running

RESULTS = Path(__file__).parent / "results" / "search-quality"
TRIES = 60


def speed_of(architecture: Architecture, table: LatencyTable) -> float:
    """Measure frames per second, sustained over the states in the table's history."""
    meter = NetworkMeter(table.copy())
    return measure_state(meter, architecture, lambda latency: True, memory=False).fps


def of_speed(
    candidates: Iterator[Architecture], table: LatencyTable, fps: float, count: int, factor: float
) -> list[tuple[Architecture, float]]:
    """Return candidates measured between the target and 5 % above it, with their frame rates."""
    found: list[tuple[Architecture, float]] = []
    tries = 0
    for architecture in candidates:
        table.refit(table.missing(architecture.entries()))
        predicted = 1000.0 / table.predict_ms(architecture) * factor
        if not 0.97 * fps <= predicted <= 1.08 * fps:
            continue
        tries += 1
        measured = speed_of(architecture, table)
        if fps <= measured <= OVERSHOOT * fps:
            found.append((architecture, measured))
        if len(found) == count or tries == TRIES:
            break
    return found


def uniform(space: SearchSpace) -> Iterator[Architecture]:
    """Yield the whole space's pattern with all widths scaled uniformly, from wide to narrow."""
    state = State.full(space)
    whole = state.architecture(space, prior_logits(space))
    seen = set()
    for share in np.linspace(1.0, 0.1, 91):
        w1, w2, w3, w4 = (
            max(WIDTH_STEP, round(width * share / WIDTH_STEP) * WIDTH_STEP)
            for width in space.widths
        )
        if (w1, w2, w3, w4) not in seen:
            seen.add((w1, w2, w3, w4))
            yield whole.with_(name="uniform", widths=(w1, w2, w3, w4))


def first_fast_enough(
    space: SearchSpace, table: LatencyTable, fps: float
) -> list[tuple[Architecture, float]]:
    """Return the widest uniform network that reaches the target."""
    for architecture in uniform(space):
        table.refit(table.missing(architecture.entries()))
        if 1000.0 / table.predict_ms(architecture) < 0.9 * fps:
            continue
        measured = speed_of(architecture, table)
        if measured >= fps:
            return [(architecture, measured)]
    return []


def score(
    architecture: Architecture, options: argparse.Namespace, seed: int, folder: Path
) -> float:
    """Train from scratch and return AP on val, in points; runs in a process of its own."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.jobs))
    data, val = load_split(options.data, "train"), load_split(options.data, "val")
    workspace = Workspace(folder)
    architecture.save(workspace.architecture)
    config = TrainConfig(epochs=options.epochs, seed=seed)
    train(workspace, data, architecture, config, from_supernet=False, running=Running(resume=True))
    return 100.0 * float(evaluate_checkpoint(workspace, val)["ap"])


def rivals_of(
    options: argparse.Namespace, seed: int, root: Path
) -> dict[str, list[tuple[Architecture, float]]]:
    """Train a supernet, thin it, and find other networks of the same frame rate."""
    names = ("fps", "randoms", "space", "input_size", "runtime", "threads", "supernet_epochs")
    settings = settings_of(options, *names, "ap_drop", "logit_learning_rate")
    file = root / "rivals.json"
    if file.exists():
        known = read_kept(file, settings)
        return {
            kind: [(Architecture.from_json(text), fps) for text, fps in networks]
            for kind, networks in known.items()
        }
    size = parse_size(options.input_size)
    data = load_split(options.data, "train")
    space = search_space(options.space, input_size=size, num_classes=data.num_classes)
    target: Target = resolve("cpu", runtime=options.runtime, threads=options.threads)
    workspace = Workspace(root)
    search = SearchConfig(logit_learning_rate=options.logit_learning_rate)
    config = replace(SUPERNET, epochs=options.supernet_epochs, seed=seed)
    train_supernet(workspace, data, space, config, search, running=Running(resume=True))
    candidate = Candidate(space, (target,), (Limits(target_fps=options.fps),))
    kept = workspace.stage("thin")
    if kept.get("target_fps") != options.fps:
        kept = thin(workspace, [candidate], data=data, ap_drop=options.ap_drop)
    thinned = Architecture.load(workspace.architecture)
    table = open_table(workspace.tables, target, size)
    rng = np.random.default_rng([seed, 7])
    drawn = (
        random_architecture(rng, space.template, space.widths, space.positions)
        for _ in range(100_000)
    )
    factor = kept["measured_fps"] * table.predict_ms(thinned) / 1000.0
    found = {
        "thinned": [(thinned, float(kept["measured_fps"]))],
        "random": of_speed(drawn, table, options.fps, options.randoms, factor),
        "uniform": first_fast_enough(space, table, options.fps),
    }
    write_table(table, workspace.tables)
    texts = {kind: [(one.to_json(), fps) for one, fps in found[kind]] for kind in found}
    write_text(file, json.dumps({**texts, "settings": settings}))
    return found


def beats(seed: dict[str, list[float]], kind: str) -> bool | None:
    """Return whether the thinned network beats all of a kind; None where none was found."""
    return max(seed["thinned"]) >= max(seed[kind]) if seed[kind] else None


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fps", type=float, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--randoms", type=int, default=4)
    parser.add_argument("--space", default="base")
    parser.add_argument("--input-size", default="256x320")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--supernet-epochs", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--ap-drop", default="auto")
    parser.add_argument("--logit-learning-rate", type=float, default=1e-2)
    parser.add_argument("--jobs", type=int, default=1, help="networks that are trained at once")
    parser.add_argument("--out", type=Path, help="keeps what is trained; goes on with it")
    parser.add_argument("--name")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or Path(scratch)
        jobs = []
        for seed in range(options.seeds):
            root = out / f"seed{seed}"
            for kind, networks in rivals_of(options, seed, root).items():
                for index, (architecture, fps) in enumerate(networks):
                    jobs.append((seed, kind, architecture, fps, root / f"{kind}{index}"))
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
            scores = [pool.submit(score, job[2], options, job[0], job[4]) for job in jobs]
            for (seed, kind, architecture, fps, _), ap in zip(jobs, scores, strict=True):
                row = {
                    "seed": seed,
                    "kind": kind,
                    "ap": round(ap.result(), 3),
                    "fps": round(fps, 3),
                    "gmacs": round(count_macs(architecture).total / 1e9, 3),
                    "widths": architecture.widths,
                    "blocks": architecture.blocks,
                }
                rows.append(row)
                print(json.dumps(row), flush=True)
    by_seed = [
        {
            kind: [r["ap"] for r in rows if (r["seed"], r["kind"]) == (seed, kind)]
            for kind in ("thinned", "random", "uniform")
        }
        for seed in range(options.seeds)
    ]
    result = {
        "seeds": by_seed,
        "beats_random": [beats(seed, "random") for seed in by_seed],
        "beats_uniform": [beats(seed, "uniform") for seed in by_seed],
        "rows": rows,
        "data": options.data.name,
        "fps": options.fps,
        "settings": {k: v for k, v in vars(options).items() if k not in ("data", "out", "name")},
        **here(options.runtime, options.threads, parse_size(options.input_size)),
    }
    tell(result, RESULTS / f"{options.name}.json" if options.name else None)
    if options.name:
        points = [(r["kind"], r["seed"], r["fps"], r["ap"]) for r in rows]
        draw_rivals(points, options.fps, RESULTS / f"{options.name}.svg")


if __name__ == "__main__":
    main()
