"""Output of every benchmark: the result as one JSON line, and in a file if one is given."""

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from latency_tables.devices import resolve
from latency_tables.probe.timings import today
from latency_tables.store import conditions_of
from supernet.atomic import write_text

RESULTS = Path(__file__).parent / "results"


def tell(result: dict[str, Any], path: Path | None = None) -> None:
    """Print a result, dated, as one JSON line, and write it to a file first if one is given.

    One that has a date keeps it.
    """
    dated = {**result, "date": result.get("date", today())}
    if path is not None:
        write_text(path, json.dumps(dated, indent=1) + "\n")
    print(json.dumps(dated))


def here(runtime: str, threads: int, size: tuple[int, int]) -> dict[str, Any]:
    """Return the conditions of a measurement on this CPU: device, versions, precision, threads."""
    return asdict(conditions_of(resolve("cpu", runtime=runtime, threads=threads), size))


def memory_mb(stage: Path) -> int:
    """Return the most memory that a training's process has used, MB, of its folder's metrics."""
    with (stage / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return max(int(float(row["memory_mb"])) for row in csv.DictReader(file))
