"""What `--boxes distributions` costs: deployed networks with it and with deltas, timed in turns.

    python benchmarks/boxes.py --write

heat-xs, s and m of `frontier.py` with random weights and busy heads, at 320x320 and output stride
16, one thread, decoding, NMS and voting included. The last line is one JSON object; with --write it
goes to benchmarks/results/boxes.json.
"""

import argparse
import statistics
import time

import numpy as np
from frontier import RESULTS, architecture_of
from result import here, tell

from deploy.edge.runtimes import open_session
from latency_tables.models import random_network
from supernet.counting import count_macs
from supernet.graph.style import GraphStyle
from supernet.heatdetr.architecture import HEADS

NETWORKS = ("heat-xs", "heat-s", "heat-m")
SIZE = (320, 320)
ROUNDS, WARM, TIMED = 60, 3, 5


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    image = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), dtype=np.uint8)
    found: dict[str, object] = {}
    for name in NETWORKS:
        kinds = {
            boxes: architecture_of(name, SIZE).with_(boxes=boxes, num_classes=7) for boxes in HEADS
        }
        row: dict[str, object] = {
            "gmacs": {boxes: round(count_macs(a).total / 1e9, 4) for boxes, a in kinds.items()}
        }
        for runtime in ("onnxruntime", "openvino"):
            style = GraphStyle.of(runtime)
            sessions = {
                boxes: open_session(
                    runtime, random_network(a).to_onnx(style=style).SerializeToString(), 1
                )
                for boxes, a in kinds.items()
            }
            ms: dict[str, list[float]] = {boxes: [] for boxes in sessions}
            for _ in range(ROUNDS):
                for boxes, session in sessions.items():
                    for _ in range(WARM):
                        session.run({"image": image})
                    start = time.perf_counter()
                    for _ in range(TIMED):
                        session.run({"image": image})
                    ms[boxes].append(1e3 * (time.perf_counter() - start) / TIMED)
            ratios = [b / a for a, b in zip(ms["deltas"], ms["distributions"], strict=True)]
            row[runtime] = {
                "ms": {boxes: round(statistics.median(times), 3) for boxes, times in ms.items()},
                "ratio": round(statistics.median(ratios), 4),
            }
        found[name] = row
    conditions = {runtime: here(runtime, 1, SIZE) for runtime in ("onnxruntime", "openvino")}
    tell({"networks": found, **conditions}, RESULTS / "boxes.json" if options.write else None)


if __name__ == "__main__":
    main()
