"""Sums up the runs of `elastic.py`: AP by target, and CPU seconds where no part was interrupted."""

import statistics
from collections.abc import Sequence
from typing import Any


def summary(runs: Sequence[dict[str, Any]], fps: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return per target the means over the seeds, and what all cost against one training."""
    rows = []
    for index in range(len(fps[0])):
        row: dict[str, Any] = {
            "fps": round(statistics.mean(rates[index] for rates in fps), 1),
            "gmacs": [run["targets"][index]["gmacs"] for run in runs],
        }
        for key, part in (("inherited", None), ("finetuned", "finetuned"), ("scratch", "scratch")):
            aps = [
                (run[part] if part else run["elastic"]["inherited"])[index]["ap"]
                for run in runs
                if part is None or part in run
            ]
            if aps:
                row[f"ap_{key}"] = round(statistics.mean(aps), 2)
        rows.append(row)
    found: dict[str, Any] = {"targets": rows}
    if all("scratch" in run for run in runs):
        losses = [row["ap_scratch"] - row["ap_inherited"] for row in rows]
        found["inherited_below_scratch"] = {
            "mean": round(statistics.mean(losses), 2), "most": round(max(losses), 2)
        }  # fmt: skip
        parts = [
            part for run in runs for part in (run["supernet"], run["elastic"], *run["scratch"])
        ]
        if all(part["cpu_seconds"] is not None for part in parts):
            found["cpu_seconds"] = costs(runs)
    return found


def costs(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the CPU seconds of the training of all networks together, and of each alone."""
    together = [run["supernet"]["cpu_seconds"] + run["elastic"]["cpu_seconds"] for run in runs]
    largest = [run["scratch"][0]["cpu_seconds"] for run in runs]
    five = [sum(part["cpu_seconds"] for part in run["scratch"]) for run in runs]
    return {
        "together": [round(value) for value in together],
        "largest_alone": [round(value) for value in largest],
        "five_alone": [round(value) for value in five],
        "against_largest": round(sum(together) / sum(largest), 2),
        "against_five": round(sum(together) / sum(five), 2),
    }
