"""Time of a deployed graph by kind of node, against a plain export of the same network.

    python benchmarks/nodes.py --preset medium --input-size 640x640 --runtime openvino --name NAME

"plain" is the folded network by `torch.onnx.export`, "heat" HEAT's graph; both without NMS. They
are timed in one race, then each runs once more under the runtime's profiler. `--before FILE` adds a
graph of an older version. The last line is one JSON object; with --name it is also written to
benchmarks/results/nodes/.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from result import here, tell
from torch import nn

from deploy.edge.runtimes import OPENVINO_HINT, OnnxRuntimeSession, openvino_core
from deploy.side_by_side import Entrant, race, ratio
from latency_tables.models import random_network
from supernet.graph.style import GraphStyle
from supernet.heatdetr.architecture import preset
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.input_size import parse_size

RESULTS = Path(__file__).parent / "results" / "nodes"
RUNS = 10


class Plain(nn.Module):
    """A folded network that returns probabilities, as a user would export it."""

    def __init__(self, network: Detector) -> None:
        """Wrap a network."""
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run it."""
        logits, deltas = self.network(image)
        return logits.sigmoid(), deltas


def plain_export(network: Detector, size: tuple[int, int], path: Path) -> None:
    """Write the graph as torch exports it."""
    image = torch.zeros(1, *size, 3, dtype=torch.uint8)
    torch.onnx.register_custom_op_symbolic(
        "aten::logaddexp",
        lambda graph, a, b: graph.op(
            "Log", graph.op("Add", graph.op("Exp", a), graph.op("Exp", b))
        ),
        18,
    )
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Plain(network.deployed()), (image,), str(path), opset_version=18, dynamo=False,
            input_names=["image"],
        )  # fmt: skip


def onnxruntime_kinds(path: Path, feeds: dict[str, Any], threads: int) -> dict[str, float]:
    """Return milliseconds by kind of node, by ONNX Runtime's profile."""
    found: dict[str, float] = defaultdict(float)
    with tempfile.TemporaryDirectory() as folder:
        session = OnnxRuntimeSession(path, threads, profile=str(Path(folder) / "run"))
        for _ in range(RUNS):
            session.run(feeds)
        for event in json.loads(Path(session.session.end_profiling()).read_text()):
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                found[event["args"]["op_name"]] += event["dur"] / 1e3 / RUNS
    return found


def openvino_kinds(
    path: Path, feeds: dict[str, Any], threads: int, precision: str
) -> dict[str, float]:
    """Return milliseconds by kind of node, by OpenVINO's counters."""
    core = openvino_core()
    compiled = core.compile_model(
        core.read_model(str(path)),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": OPENVINO_HINT[precision],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "PERF_COUNT": True,
        },
    )
    request = compiled.create_infer_request()
    found: dict[str, float] = defaultdict(float)
    for _ in range(RUNS):
        request.infer(feeds)
        for info in request.get_profiling_info():
            found[info.node_type] += info.real_time.total_seconds() * 1e3 / RUNS
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="medium")
    parser.add_argument("--input-size", default="640x640", help="HxW")
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), default="openvino")
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--before", type=Path, help="ONNX file of an older version")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--name")
    options = parser.parse_args()
    size = parse_size(options.input_size)
    network = random_network(preset(options.preset).with_(input_size=size))
    with tempfile.TemporaryDirectory() as folder:
        files = {"plain": Path(folder) / "plain.onnx", "heat": Path(folder) / "heat.onnx"}
        plain_export(network, size, files["plain"])
        model = network.to_onnx(raw=True, style=GraphStyle.of(options.runtime))
        files["heat"].write_bytes(model.SerializeToString())
        if options.before:
            files["before"] = options.before
        laps = race(
            [
                Entrant(
                    name=name,
                    model=path,
                    runtime=options.runtime,
                    precision=options.precision,
                    threads=options.threads,
                )
                for name, path in files.items()
            ],
            rounds=options.rounds,
        )
        own = next(lap for lap in laps if lap.name == "heat")
        feeds = {"image": np.zeros((1, *size, 3), dtype=np.uint8)}
        graphs = {}
        for lap in laps:
            path = files[lap.name]
            kinds = (
                onnxruntime_kinds(path, feeds, options.threads)
                if options.runtime == "onnxruntime"
                else openvino_kinds(path, feeds, options.threads, options.precision)
            )
            graphs[lap.name] = {
                "nodes": len(onnx.load(path, load_external_data=False).graph.node),
                "ms": round(lap.p50_ms, 3),
                "against_heat": round(ratio(lap, own), 4),
                "ms_by_kind": {
                    kind: round(ms, 3)
                    for kind, ms in sorted(kinds.items(), key=lambda pair: -pair[1])
                    if ms >= 0.01
                },
            }
    result = {
        "network": options.preset,
        "graphs": graphs,
        **here(options.runtime, options.threads, size),
        "precision": options.precision,
    }
    tell(result, RESULTS / f"{options.name}.json" if options.name else None)


if __name__ == "__main__":
    main()
