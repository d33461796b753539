"""Measures one network and the reference in this process; `latency_sum.py` starts it.

    python benchmarks/time_model.py FOLDER SETTING

FOLDER holds network.onnx and reference.onnx with their inputs, SETTING is JSON. Imports no torch.
Prints [network ms, reference ms].
"""

import json
import sys
from pathlib import Path

from latency_tables.batch import Bench, Model, Setting


def read_model(folder: Path, name: str) -> Model:
    """Read a model and what it takes."""
    inputs = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    shapes = {key: (tuple(shape), dtype) for key, (shape, dtype) in inputs.items()}
    return Model((folder / f"{name}.onnx").read_bytes(), shapes)


def main(folder: str, setting: str) -> None:
    """Measure the network and the reference in turns."""
    place = Path(folder)
    bench = Bench(Setting(**json.loads(setting)), read_model(place, "reference"))
    result = bench.network(read_model(place, "network"))
    print(json.dumps([result.ms, result.reference_ms]))


if __name__ == "__main__":
    main(*sys.argv[1:])
