"""Runs by name and seed that are kept in a folder: only those that are missing are made.

A kept run has its settings beside it, and is refused where others are asked for. Older ones have
none and are taken as they are.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from deploy.edge.cpu import cpu_model
from latency_tables.probe.timings import today
from supernet.atomic import write_text
from supernet.version import version_line

Runs = Mapping[str, Mapping[str, Any]]
"""What was found by each seed."""


def settings_of(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the options that decide about a result, the data set by its name."""
    return {"data": options.data.name, **{name: getattr(options, name) for name in names}}


def refuse_others(
    file: Path, before: Mapping[str, Any], settings: Mapping[str, Any], option: str = "folder"
) -> None:
    """End where a file has other settings; settings that it does not have are not compared."""
    different = [
        f"{name} {before[name]}, not {value}"
        for name, value in settings.items()
        if before.get(name, value) != value
    ]
    if different:
        raise SystemExit(f"{file} is of {'; '.join(different)}: another {option} is needed")


def read_kept(file: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file keeps, without its settings; end where they are others."""
    found: dict[str, Any] = json.loads(file.read_text())
    refuse_others(file, found.pop("settings", {}), settings)
    return found


def kept_runs(
    work: Path,
    names: Iterable[str],
    seeds: Iterable[str],
    settings: Mapping[str, Any],
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
                found = run(name, int(seed), folder)
                write_text(file, json.dumps({**found, "settings": settings}))
            done[name][seed] = read_kept(file, settings)
    return dict(done)


def timed(
    file: Path, do: Callable[[], dict[str, Any]], *, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a part found before, or do it and keep it with its seconds and CPU seconds.

    They are None for a part that an earlier process has begun, in the folder of the file's name.
    """
    if not file.exists():
        print(f"== {file.stem}", file=sys.stderr, flush=True)
        begun = file.with_name(file.stem.replace(" ", "-")).exists()
        start, cpu = time.monotonic(), time.process_time()
        found = do()
        spent = {"seconds": time.monotonic() - start, "cpu_seconds": time.process_time() - cpu}
        seconds = {key: None if begun else round(value, 1) for key, value in spent.items()}
        write_text(file, json.dumps({**found, **seconds, "settings": settings}))
    return read_kept(file, settings)


def mean_of(runs: Runs, key: str) -> float:
    """Return the mean of a figure over the seeds, with two digits."""
    return round(statistics.mean(run[key] for run in runs.values()), 2)


def check_result(path: Path | None, settings: Mapping[str, Any]) -> None:
    """End where an earlier result in the file is of other settings."""
    if path is not None and path.exists():
        refuse_others(path, json.loads(path.read_text()), settings, "--name")


def with_earlier(result: dict[str, Any], path: Path | None, rows: str, name: str) -> dict[str, Any]:
    """Return a result with those rows of its file that it lacks, each with the date it had."""
    if path is None or not path.exists():
        return result
    before = json.loads(path.read_text())
    known = {row[name] for row in result[rows]}
    earlier = [{"date": before["date"], **row} for row in before[rows] if row[name] not in known]
    return {**result, rows: [*result[rows], *earlier]}


def origin(epochs: int) -> dict[str, Any]:
    """Return when, where and by which HEAT a training of so many epochs was made."""
    return {
        "epochs": epochs,
        "date": today(),
        "heat": version_line(),
        "cpu": cpu_model(),
    }
