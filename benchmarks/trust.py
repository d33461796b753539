"""One file of what testing found: `results/trust.json`, put together from the other results.

    PYTHONPATH=. python benchmarks/trust.py
    PYTHONPATH=. python benchmarks/trust.py --tests build/lowest.xml --name tests-lowest
    PYTHONPATH=. python benchmarks/trust.py --coverage build/coverage.json --name coverage

The first form reads the results of `faults.py`, `fuzz.py`, `mutation.py`, `soak.py`, `scale.py`,
`release.py`, and those of the other two forms; what has not been run is null. The second one keeps
the counts of a report of pytest (`--junitxml`), with the versions of this environment; the third
the totals of `coverage json`.
"""

import argparse
import importlib.metadata
import json
import platform
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

from result import RESULTS, tell

VERSIONS = ("numpy", "opencv-python-headless", "onnx", "onnxruntime", "openvino", "torch", "pandas",
            "scipy", "matplotlib", "optuna", "pillow", "pycocotools", "safetensors")  # fmt: skip


def tests(report: Path) -> dict[str, Any]:
    """Return how many tests passed, were skipped or failed, by which versions."""
    counts: Counter[str] = Counter(passed=0, skipped=0, failed=0)
    failed = []
    for case in ET.parse(report).getroot().iter("testcase"):
        kinds = {child.tag for child in case}
        kind = (
            "failed" if kinds & {"failure", "error"} else "skipped" if kinds & {"skipped"} else ""
        )
        counts[kind or "passed"] += 1
        if kind == "failed":
            failed.append(f"{case.get('classname')}::{case.get('name')}")
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    return {"python": platform.python_version(), **counts, "failures": failed, "versions": versions}


def coverage(report: Path) -> dict[str, Any]:
    """Return the share of lines and branches that tests execute."""
    totals = json.loads(report.read_text())["totals"]
    keys = ("num_statements", "missing_lines", "num_branches", "missing_branches")
    return {"percent": round(totals["percent_covered"], 2), **{key: totals[key] for key in keys}}


def together(known: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of all results."""

    def part(name: str, *keys: str) -> dict[str, Any] | None:
        found = known.get(name)
        return None if found is None else {key: found.get(key) for key in (*keys, "date")}

    mutants = known.get("mutation")
    soak = known.get("soak")
    scale = known.get("scale")
    fuzz = part("fuzz", "cases", "findings")
    before = known.get("fuzz-before")
    if fuzz is not None and before is not None:
        fuzz["before"] = {
            "cases": before["cases"],
            "findings": before["findings"],
            "readers": [name for name, found in before["readers"].items() if found["findings"]],
        }
    return {
        "faults": part(
            "faults", "kills", "kills_by_command", "scenarios", "passed", "skipped", "wrong",
            "slowest_end_s",
        ),
        "fuzz": fuzz,
        "mutants": mutants and {
            "killed": mutants["killed"],
            "made": mutants["made"],
            "modules": {
                name: {"killed": len(m["killed"]), "made": len(m["killed"] + m["survived"])}
                for name, m in mutants["modules"].items()
            },
            "date": mutants["date"],
        },
        "coverage": part("coverage", "percent", "num_statements", "num_branches"),
        "soak": soak and {
            **{
                name: {key: soak[name].get(key) for key in SOAK if key in soak[name]}
                for name in ("video", "recording", "camera", "enact", "broken")
            },
            "note": soak["note"],
            "date": soak["date"],
        },
        "scale": scale and {
            "parent_mb": scale["parent_mb"],
            "growth": scale["growth"],
            "largest": scale["sizes"][-1],
            "note": scale["note"],
            "date": scale["date"],
        },
        "lowest": part("tests-lowest", "python", "passed", "skipped", "failed", "note"),
        "newest": part("tests-newest", "python", "passed", "skipped", "failed", "note"),
        "release": part("release", "version", "thin_met", "edge_packages", "edge_images"),
    }  # fmt: skip


SOAK = ("minutes", "steps", "images", "drift", "descriptors", "fps", "interval_ms", "exit")


def main() -> None:
    """Put the results together, or keep one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", type=Path, help="report of pytest")
    parser.add_argument("--coverage", type=Path, help="report of coverage")
    parser.add_argument("--note", help="what was special about the run")
    parser.add_argument("--name", default="trust")
    given = parser.parse_args()
    if given.tests is not None:
        result = tests(given.tests)
    elif given.coverage is not None:
        result = coverage(given.coverage)
    else:
        known = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
        result = together(known)
    if given.note is not None:
        result["note"] = given.note
    tell(result, RESULTS / f"{given.name}.json")


if __name__ == "__main__":
    main()
