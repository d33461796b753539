"""Does `heat bench` agree with the runtimes' own tools? The same file, timed in turns.

    python benchmarks/own_timing.py --name medium-448

OpenVINO: `benchmark_app` (one synchronous request, one stream, the same threads and precision).
ONNX Runtime: the `model_run` events of its profiler, in a process of its own. The result is the
median of the ratios of neighbouring turns. The last line is one JSON object; with --name it is also
written to benchmarks/results/own-timing/.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from result import here, tell

from deploy.edge.runtimes import OnnxRuntimeSession
from deploy.feeds import inputs_of
from deploy.side_by_side import Entrant, race, run_for
from latency_tables.models import random_network
from supernet.heatdetr.architecture import preset
from supernet.heatdetr.input_size import parse_size

RESULTS = Path(__file__).parent / "results" / "own-timing"
SECONDS = 6.0


def by_benchmark_app(model: Path, threads: int) -> float:
    """Return the median milliseconds that OpenVINO's benchmark_app reports."""
    program = shutil.which("benchmark_app", path=str(Path(sys.executable).parent))
    if program is None:
        raise SystemExit("benchmark_app is not installed: pip install openvino")
    command = [
        program, "-m", str(model), "-d", "CPU", "-api", "sync", "-hint", "none", "-nstreams", "1",
        "-nthreads", str(threads), "-infer_precision", "f32", "-t", str(round(SECONDS)),
    ]  # fmt: skip
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Median:\s+([\d.]+) ms", text)
    if found is None:
        raise SystemExit(f"benchmark_app reports no median: {text[-300:]}")
    return float(found[1])


def by_profiler(model: Path, threads: int) -> float:
    """Return the median milliseconds of a run that ONNX Runtime's profiler reports."""
    command = [sys.executable, __file__, "--profile", str(model), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def profile(model: Path, threads: int) -> float:
    """Run a model under the profiler in this process."""
    with tempfile.TemporaryDirectory() as folder:
        session = OnnxRuntimeSession(model, threads, profile=str(Path(folder) / "run"))
        feeds = inputs_of(session)
        run_for(session, feeds, SECONDS)
        events = json.loads(Path(session.session.end_profiling()).read_text(encoding="utf-8"))
    return statistics.median(e["dur"] / 1e3 for e in events if e["name"] == "model_run")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="medium")
    parser.add_argument("--input-size", default="448x448", help="HxW")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--profile", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--name")
    options = parser.parse_args()
    if options.profile:
        print(profile(options.profile, options.threads))
        return
    size = parse_size(options.input_size)
    network = random_network(preset(options.preset).with_(input_size=size))
    result: dict[str, Any] = {"network": options.preset, "runtimes": {}}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        model.write_bytes(network.to_onnx().SerializeToString())
        for runtime, own in (("openvino", by_benchmark_app), ("onnxruntime", by_profiler)):
            entrant = Entrant(
                name=options.preset, model=model, runtime=runtime, threads=options.threads
            )
            pairs = [
                (
                    race([entrant], rounds=1, turn_seconds=SECONDS)[0].p50_ms,
                    own(model, options.threads),
                )
                for _ in range(options.turns)
            ]
            result["runtimes"][runtime] = {
                "heat_bench_ms": round(statistics.median(ours for ours, _ in pairs), 3),
                "own_tool_ms": round(statistics.median(theirs for _, theirs in pairs), 3),
                "ratio": round(statistics.median(ours / theirs for ours, theirs in pairs), 4),
                **here(runtime, options.threads, size),
            }
    tell(result, RESULTS / f"{options.name}.json" if options.name else None)


if __name__ == "__main__":
    main()
