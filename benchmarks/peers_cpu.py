"""The deployed graphs beside the peers', on this CPU: milliseconds, MACs, share of the ceiling.

    python benchmarks/peers_cpu.py --input-size 640x640 --runtime openvino --precision f32 \
        --peers DIR --name openvino-f32-640x640

All models run in interleaved races, batch 1, each in a process of its own, with random weights and
without NMS or top-k (`peers.py` writes the peers' files). The memory layout of a process makes a
network some percent faster or slower: medians over several races with new processes are reported.
Multiply-adds are counted from the graphs, the same way for all: convolutions and matrix products.
The ceiling is the rate of a large matrix product in the same runtime, precision and race. The last
line is one JSON object; with --name it is also written to benchmarks/results/peers/.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from result import here, tell

from deploy.side_by_side import Entrant, Lap, race, ratio
from latency_tables.models import randomise
from latency_tables.probe.setting import Setting
from supernet.graph.style import GraphStyle
from supernet.heatdetr.architecture import Architecture, preset
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.input_size import parse_size

RESULTS = Path(__file__).parent / "results" / "peers"
GEMM = 1536
"""Side of the square matrices whose product gives the ceiling."""


HEAVY = ("Conv", "ConvTranspose", "MatMul", "Gemm")


def count_macs(path: Path) -> int:
    """Return the multiply-adds of a graph's convolutions and matrix products, batch 1."""
    model = onnx.load(path)
    nodes = [node for node in model.graph.node if node.op_type in HEAVY]
    shapes = executed_shapes(model, {name for n in nodes for name in (*n.input[:2], n.output[0])})
    total = 0
    for node in nodes:
        left, right, out = (shapes[name] for name in (*node.input[:2], node.output[0]))
        if node.op_type == "Conv":
            total += math.prod(out) * math.prod(right[1:])
        elif node.op_type == "ConvTranspose":
            total += math.prod(left) * math.prod(right[1:])
        else:
            turned = any(a.name == "transA" and a.i for a in node.attribute)
            total += math.prod(out) * left[-2 if turned else -1]
    return total


def executed_shapes(model: onnx.ModelProto, names: set[str]) -> dict[str, tuple[int, ...]]:
    """Run a model once in ONNX Runtime and return the actual shapes of its tensors."""
    graph = model.graph
    shapes = {init.name: tuple(init.dims) for init in graph.initializer}
    known = {output.name for output in graph.output} | {given.name for given in graph.input}
    wanted = sorted(names - set(shapes) - known)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    feeds = {
        given.name: np.zeros(given.shape, np.uint8 if "uint8" in given.type else np.float32)
        for given in session.get_inputs()
    }
    outputs = [output.name for output in session.get_outputs()]
    found = zip(outputs, session.run(outputs, feeds), strict=True)
    given = {name: array.shape for name, array in feeds.items()}
    return shapes | given | {name: array.shape for name, array in found}


def gemm() -> bytes:
    """Return a graph of one square matrix product by a constant."""
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((GEMM, GEMM)).astype(np.float32), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [GEMM, GEMM])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [GEMM, GEMM])
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "gemm", [x], [y], [weight])
    model = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 20)])
    return bytes(model.SerializeToString())


def ours(architecture: Architecture, setting: Setting) -> bytes:
    """Return a network with random weights, without NMS, in the setting's precision."""
    network = Detector(architecture).eval()
    randomise(network)
    model = network.to_onnx(raw=True, style=GraphStyle.of(setting.runtime, setting.graph_precision))
    return bytes(model.SerializeToString())


def row(races: list[list[Lap]], index: int, macs: dict[str, int]) -> dict[str, Any]:
    """Return the results of one model: medians over the races."""
    laps = [laps[index] for laps in races]
    name = laps[0].name
    ms = statistics.median(lap.p50_ms for lap in laps)
    found = {
        "model": name,
        "ms": round(ms, 3),
        "ms_of_each_race": [round(lap.p50_ms, 3) for lap in laps],
        "p95_ms": round(statistics.median(lap.p95_ms for lap in laps), 3),
        "gmacs": round(macs[name] / 1e9, 3),
        "ms_per_gmac": round(ms / macs[name] * 1e9, 3),
        "ceiling_share": round(
            statistics.median(
                macs[name] / GEMM**3 / ratio(laps[index], laps[-1]) for laps in races
            ),
            4,
        ),
        "rss_mb": round(max(lap.peak_mb for lap in laps), 1),
        "start_ms": round(statistics.median(lap.start_ms for lap in laps), 1),
        "runs": sum(lap.runs for lap in laps),
    }
    detr = next((i for i, lap in enumerate(races[0]) if lap.name == "detr-r50"), None)
    if detr is not None:
        per_mac = macs["detr-r50"] / macs[name]
        found["against_detr_r50_by_mac"] = round(
            statistics.median(ratio(laps[index], laps[detr]) * per_mac for laps in races), 4
        )
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input-size", default="640x640", help="HxW")
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), default="onnxruntime")
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--presets", default="tiny,small,medium,large")
    parser.add_argument("--thinned", type=Path, nargs="*", default=[], help="architecture.json")
    parser.add_argument("--peers", type=Path, help="folder of ONNX files that peers.py wrote")
    parser.add_argument("--only", default="", help="peers to run, separated by commas")
    parser.add_argument("--rounds", type=int, default=6, help="turns of a model in each race")
    parser.add_argument("--races", type=int, default=3, help="each with processes of its own")
    parser.add_argument("--name")
    options = parser.parse_args()
    size = parse_size(options.input_size)
    setting = Setting(runtime=options.runtime, precision=options.precision, threads=options.threads)
    files: dict[str, Path] = {}
    macs: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        own = {
            f"heat-{name}": preset(name).with_(input_size=size)
            for name in options.presets.split(",")
            if name
        }
        for path in options.thinned:
            own[f"heat-{path.stem}"] = Architecture.load(path).with_(input_size=size)
        for name, architecture in own.items():
            files[name] = Path(scratch) / f"{name}.onnx"
            files[name].write_bytes(ours(architecture, setting))
            macs[name] = count_macs(files[name])
        suffix = f"-{size[0]}x{size[1]}"
        wanted = [name for name in options.only.split(",") if name]
        for path in sorted(options.peers.glob(f"*{suffix}.onnx")) if options.peers else []:
            name = path.stem.removesuffix(suffix)
            if not wanted or name in wanted:
                files[name], macs[name] = path, count_macs(path)
        files["gemm"] = Path(scratch) / "gemm.onnx"
        files["gemm"].write_bytes(gemm())
        entrants = [
            Entrant(
                name=name,
                model=path,
                runtime=options.runtime,
                precision=options.precision,
                threads=options.threads,
            )
            for name, path in files.items()
        ]
        races = [race(entrants, rounds=options.rounds) for _ in range(options.races)]
    rows = [row(races, index, macs) for index in range(len(entrants) - 1)]
    for one in rows:
        print(json.dumps(one), file=sys.stderr)
    ceiling_ms = statistics.median(laps[-1].p50_ms for laps in races)
    result = {
        "models": rows,
        "ceiling_gmacs_per_s": round(GEMM**3 / ceiling_ms / 1e6, 1),
        "races": options.races,
        **here(options.runtime, options.threads, size),
        "precision": options.precision,
    }
    tell(result, RESULTS / f"{options.name}.json" if options.name else None)


if __name__ == "__main__":
    main()
