"""Runs by name and seed that are kept in a folder: only those that are missing are made."""

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from supernet.atomic import write_text

Runs = Mapping[str, Mapping[str, Any]]
"""What was found by each seed."""


def kept_runs(
    work: Path,
    names: Iterable[str],
    seeds: Iterable[str],
    run: Callable[[str, int, Path], dict[str, Any]],
) -> dict[str, Runs]:
    """Return what `run(name, seed, folder)` finds, by name; each is kept in `work` as JSON."""
    work.mkdir(parents=True, exist_ok=True)
    names = list(names)
    done: dict[str, dict[str, Any]] = {name: {} for name in names}
    for seed in seeds:
        for name in names:
            folder = work / f"{name.replace(' ', '-')}-{seed}"
            file = folder.with_name(f"{folder.name}.json")
            if not file.exists():
                print(f"== {name}, seed {seed}", file=sys.stderr, flush=True)
                write_text(file, json.dumps(run(name, int(seed), folder)))
            done[name][seed] = json.loads(file.read_text())
    return dict(done)


def mean_of(runs: Runs, key: str) -> float:
    """Return the mean of a figure over the seeds, with two digits."""
    return round(statistics.mean(run[key] for run in runs.values()), 2)
