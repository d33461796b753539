"""HeatDETR's global blocks with approximate attention: time saved, and change of their output.

    python benchmarks/global_blocks.py --preset medium --input-size 800x1344 --runtime openvino \
        --name openvino

The global blocks of S4, SAM_4, SCM and TCM with original attention, ACT, ENACT and pool, and the
channel-wise ones, with the same random weights: each place is a graph, the kinds are timed in
turns, and the milliseconds of all places are added up. The difference is that of the s_out map,
after all blocks before TCM, relative to original attention's, on an image-like input, in torch;
weights are random, so that it measures the distance between operators, not the loss of a trained
network. The last line is one JSON object; with --name it goes to benchmarks/results/global-blocks/.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from result import RESULTS, here, tell

from deploy.side_by_side import Entrant, race
from latency_tables.models import random_network
from supernet.graph.folding import fold
from supernet.graph.style import GraphStyle
from supernet.graph.writer import GraphWriter
from supernet.heatdetr.architecture import GLOBAL_KINDS, preset
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.input_size import parse_size
from supernet.heatdetr.operators import OPERATORS
from supernet.heatdetr.operators.entries import Entry

PLACES = ("s4_global", "sam4_global", "scm_global1", "scm_global2", "tcm_t1", "tcm_t2_0")


def write(entry: Entry, path: Path, runtime: str) -> None:
    """Write one block's graph, with random weights."""
    torch.manual_seed(0)
    operator = OPERATORS[entry.op]
    block = fold(torch.nn.ModuleList([operator.build(entry)]))[0]
    graph = GraphWriter(GraphStyle.of(runtime))
    inputs = [graph.input(f"x{i}", (1, *shape)) for i, shape in enumerate(operator.inputs(entry))]
    found = block.emit(graph, *inputs)  # type: ignore[operator]
    found = found if isinstance(found, tuple) else (found,)
    model = graph.model([(f"y{i}", value, "float32") for i, value in enumerate(found)])
    path.write_bytes(model.SerializeToString())


@torch.inference_mode()
def differences(name: str, size: tuple[int, int]) -> dict[str, float]:
    """Return the distance of s_out from original attention's, as a share of its norm."""
    exact = random_network(preset(name, input_size=size, global_block="oa"))
    rough = torch.rand(1, 3, size[0] // 32, size[1] // 32) * 255
    smooth = torch.nn.functional.interpolate(rough, size=size, mode="bicubic").clamp(0, 255)
    image = smooth.permute(0, 2, 3, 1).to(torch.uint8)
    expected = exact.parts(image)["scm_global2.0"]
    found = {}
    for kind in ("act", "enact", "pool"):
        other = Detector(exact.architecture.with_(global_block=kind)).eval()
        other.load_state_dict(exact.state_dict(), strict=kind != "enact")
        away = other.parts(image)["scm_global2.0"] - expected
        found[kind] = round(float(away.norm() / expected.norm()), 5)
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="medium")
    parser.add_argument("--input-size", default="800x1344", help="HxW")
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), default="onnxruntime")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--name")
    options = parser.parse_args()
    size = parse_size(options.input_size)
    entries = {
        kind: preset(options.preset, input_size=size, global_block=kind).entries()
        for kind in GLOBAL_KINDS
    }
    t2 = sum(place.startswith("tcm_t2") for place in entries["oa"])
    places, total = {}, dict.fromkeys(GLOBAL_KINDS, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        for place in PLACES:
            entrants = []
            for kind in GLOBAL_KINDS:
                path = Path(folder) / f"{place}-{kind}.onnx"
                write(entries[kind][place], path, options.runtime)
                entrants.append(
                    Entrant(name=kind, model=path, runtime=options.runtime, threads=options.threads)
                )
            laps = {lap.name: lap.p50_ms for lap in race(entrants, rounds=options.rounds)}
            entry, count = entries["oa"][place], t2 if place == "tcm_t2_0" else 1
            places[place] = {
                "tokens": entry.h * entry.w,
                "width": entry.d_in * (2 if place == "tcm_t1" else 1),
                "count": count,
                "ms": {kind: round(ms, 3) for kind, ms in laps.items()},
            }
            for kind, ms in laps.items():
                total[kind] += count * ms
    result = {
        "network": options.preset,
        "places": places,
        "ms": {kind: round(ms, 3) for kind, ms in total.items()},
        "speedup": {kind: round(total["oa"] / ms, 3) for kind, ms in total.items()},
        "difference": differences(options.preset, size),
        **here(options.runtime, options.threads, size),
    }
    path = RESULTS / "global-blocks" / f"{options.name}.json" if options.name else None
    tell(result, path)


if __name__ == "__main__":
    main()
