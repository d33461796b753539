"""The README's three commands, verbatim, in an empty directory, several times.

    python benchmarks/three_commands.py --times 10 --name three-commands
    python benchmarks/three_commands.py --times 5 --disturb --name three-commands-disturbed

`heat profile --device cpu-i7`, `heat thin --target-fps 24`, `heat export --format onnx`. A try is
met if all three exit with 0 and the bundle's measured, sustained frame rate is at least 24. With
--disturb another process burns a core in bursts the whole time (`disturber.py`). The last line is
one JSON object; with --name it goes to benchmarks/results/.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from disturber import beside
from result import RESULTS, tell

from latency_tables.probe.machine import detect_cpu

TARGET_FPS = 24
COMMANDS = (
    ("profile", "--device", "cpu-i7"),
    ("thin", "--target-fps", str(TARGET_FPS)),
    ("export", "--format", "onnx"),
)


def attempt(folder: Path) -> dict[str, Any]:
    """Run the three commands in a folder; return their results and seconds."""
    row: dict[str, Any] = {"exits": [], "seconds": []}
    home = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": home}
    for command in COMMANDS:
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "heat", *command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        row["exits"].append(done.returncode)
        row["seconds"].append(round(time.monotonic() - started, 1))
        lines = done.stdout.strip().splitlines()
        found = json.loads(lines[-1]) if lines else {}
        if command[0] == "profile":
            row["held_out_error"], row["threads"] = (
                found.get("held_out_error"),
                found.get("threads"),
            )
            row["reference_ms"] = found.get("reference_ms")
        elif command[0] == "thin":
            row["predicted"], row["thinned"] = found.get("predicted_fps"), found.get("measured_fps")
            row["measurements"] = found.get("measurements")
        else:
            row["measured_fps"] = found.get("measured_fps")
            row["measured_fps_now"] = found.get("measured_fps_now")
            row["measured_fps_best"] = found.get("measured_fps_best")
        if done.returncode:
            row["error"] = done.stderr.strip()[-300:]
            break
    row["total_seconds"] = round(sum(row["seconds"]), 1)
    row["met"] = row["exits"] == [0, 0, 0] and (row["measured_fps"] or 0.0) >= TARGET_FPS
    return row


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--disturb", action="store_true")
    parser.add_argument("--name")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for number in range(options.times):
        with tempfile.TemporaryDirectory() as folder, beside(options.disturb, number):
            rows.append(attempt(Path(folder)))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    cpu = detect_cpu()
    result = {
        "tried": len(rows),
        "met": sum(row["met"] for row in rows),
        "disturbed": options.disturb,
        "total_seconds": [row["total_seconds"] for row in rows],
        "measured_fps": [row.get("measured_fps") for row in rows],
        "measured_fps_now": [row.get("measured_fps_now") for row in rows],
        "machine": cpu.model,
        "flags": list(cpu.flags),
        "cores": cpu.cores,
        "rows": rows,
    }
    tell(result, RESULTS / f"{options.name}.json" if options.name else None)


if __name__ == "__main__":
    main()
