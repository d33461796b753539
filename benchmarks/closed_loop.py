"""Does the deployed artefact run at the target? Thins and exports for many targets, unattended.

    python benchmarks/closed_loop.py --runtime openvino --targets 8,12,18,27,40,60 --name openvino

Each target is one `heat thin` and one `heat export`, in processes of their own, as a user runs
them; the frame rate is the exported bundle's, sustained over the states of the machine that its
latency table holds (`ratios_now`: in the machine's state of that minute). A target is `met` within
[1, 1.05] of it, `infeasible` where `heat thin` says that the smallest network is too slow,
`unthinned` where the whole space's network is faster than that, else `missed`. With --profile the
table is measured by `heat profile` first, else by the first thinning; --global-block does so with
that attention, and `moves` shows when thinning replaced it (AR). With --disturb another process
burns a core in bursts the whole time. With --name the result is written to
benchmarks/results/closed-loop/. The last line is one JSON object.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from disturber import beside
from figures import draw_targets
from result import here, tell

from heat.thinning.settle import OVERSHOOT
from supernet.heatdetr.input_size import parse_size

RESULTS = Path(__file__).parent / "results" / "closed-loop"
FORMATS = {"onnxruntime": "onnx", "openvino": "openvino"}
PROMISE_BROKEN = 3


def heat(*arguments: object) -> tuple[int, dict[str, Any]]:
    """Run a command; return its exit code and its JSON result."""
    command = [sys.executable, "-m", "heat", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode not in (0, PROMISE_BROKEN):
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    return done.returncode, json.loads(lines[-1]) if lines else {}


def chosen_moves(out: Path) -> list[str]:
    """Return the moves that the last thinning chose, in order."""
    with (out / "thin" / "thinning.csv").open(encoding="utf-8") as file:
        return [row["move"] for row in csv.DictReader(file) if row["chosen"] == "1"]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", choices=sorted(FORMATS), default="onnxruntime")
    parser.add_argument("--targets", default="8,11,15,21,29,41,57,80")
    parser.add_argument("--input-size", default="448x448")
    parser.add_argument("--space", default="large")
    parser.add_argument("--global-block", help="profiled first, then thinned")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--disturb", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path, help="workspace; a temporary one by default")
    parser.add_argument("--name")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch, beside(options.disturb):
        out = options.out or Path(scratch) / "run"
        where = ["--threads", options.threads, "--out", out]
        form = ["--runtime", options.runtime, "--input-size", options.input_size]
        if options.global_block or options.profile:
            space = ["--space", options.space]
            if options.global_block:
                space += ["--global-block", options.global_block]
            heat("profile", *space, *form, *where)
            form = ["--runtime", options.runtime]
        else:
            form += ["--space", options.space]
        for text in options.targets.split(","):
            target = float(text)
            started = time.monotonic()
            _, thinned = heat("thin", "--target-fps", target, *form, *where)
            row: dict[str, Any] = {"target": target, "floor_fps": None, "measured": None}
            if thinned["architecture"] is None:
                row["verdict"], row["floor_fps"] = "infeasible", thinned["measured_fps"]
            else:
                _, deployed = heat("export", "--format", FORMATS[options.runtime], *where)
                # An export that disagrees with torch prints no result: missed.
                ratio = (deployed.get("measured_fps") or 0.0) / target
                verdict = "met" if 1.0 <= ratio <= OVERSHOOT else "missed"
                if ratio > OVERSHOOT and thinned["steps"] == 0:
                    verdict = "unthinned"
                row |= {
                    "verdict": verdict,
                    "table_fps": round(1000.0 / thinned["table_ms"], 3),
                    "thinned": thinned["measured_fps"],
                    "measured": deployed.get("measured_fps"),
                    "ratio": round(ratio, 4),
                    "ratio_now": round((deployed.get("measured_fps_now") or 0.0) / target, 4),
                    "measurements": thinned["measurements"],
                    "widths": thinned["widths"],
                    "blocks": thinned["blocks"],
                    "global_block": thinned["global_block"],
                    "moves": chosen_moves(out),
                }
            row["seconds"] = round(time.monotonic() - started, 1)
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    result = {
        **{
            verdict: [row["target"] for row in rows if row["verdict"] == verdict]
            for verdict in ("met", "infeasible", "unthinned", "missed")
        },
        "ratios": [row.get("ratio") for row in rows],
        "ratios_now": [row.get("ratio_now") for row in rows],
        "targets": [row["target"] for row in rows],
        "space": options.space,
        "disturbed": options.disturb,
        "rows": rows,
        **here(options.runtime, options.threads, parse_size(options.input_size)),
    }
    tell(result, RESULTS / f"{options.name}.json" if options.name else None)
    if options.name:
        points = [(row["target"], row["measured"]) for row in rows if row["measured"]]
        draw_targets(points, f"{options.name}: deployed", RESULTS / f"{options.name}.svg")


if __name__ == "__main__":
    main()
