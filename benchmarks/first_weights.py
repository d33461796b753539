"""What a supernet's weights are worth to a network that is trained after it, as `heat build` does.

    python benchmarks/first_weights.py --data cells --work DIR --name cells

One network of a space, half as wide, is trained with `--recipe small` from scratch, and from the
weights of supernets that AdamW and Muon trained for a few epochs. Each is scored on val by every
seed; finished runs are kept. The last line is one JSON object; with --name it goes to
benchmarks/results/first-weights/.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from result import RESULTS, tell

from deploy.gate import torch_detect
from heat.spaces import search_space
from supernet.atomic import write_text
from supernet.data.coco import load_split
from supernet.data.detection_set import DetectionSet
from supernet.data.evaluate import found_rows, score_rows
from supernet.heatdetr.architecture import WIDTH_STEP
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.inherit import inherit
from supernet.heatdetr.input_size import parse_size
from supernet.heatdetr.supernet import SearchConfig, SearchSpace, Supernet
from supernet.train.loop import fit
from supernet.train.recipes import Optimizer, TrainConfig, recipe
from supernet.train.running import Running

STARTS: dict[str, Optimizer | None] = {
    "from scratch": None,
    "supernet by AdamW": "adamw",
    "supernet by Muon": "muon",
}
SEARCH = SearchConfig(logit_learning_rate=1e-2)
"""As in `heat build`, whose runs are short."""
PLAIN = Running(resume=True, workers=0)


def started(
    optimizer: Optimizer | None, space: SearchSpace, data: DetectionSet, folder: Path, epochs: int,
    seed: int,
) -> Detector:  # fmt: skip
    """Return the network as it is before its own training, half as wide as the space."""
    template = space.template
    halves = tuple(
        (width + WIDTH_STEP) // (2 * WIDTH_STEP) * WIDTH_STEP for width in template.widths
    )
    network = template.with_(name="half", widths=halves)
    torch.manual_seed(seed)
    if optimizer is None:
        return Detector(network)
    supernet = Supernet(space, SEARCH)
    config = TrainConfig(epochs=epochs, seed=seed, optimizer=optimizer)
    fit(supernet, data, config, folder, PLAIN)
    return inherit(supernet, network, tuple(tuple(range(len(b))) for b in template.blocks))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--space", default="micro")
    parser.add_argument("--input-size", default="320x320")
    parser.add_argument("--supernet-epochs", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--name")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    data, val = load_split(options.data, "train"), load_split(options.data, "val")
    space = search_space(
        options.space,
        input_size=parse_size(options.input_size),
        num_classes=data.num_classes,
        output_stride=16,
    )
    done: dict[str, dict[str, Any]] = {}
    for seed in options.seeds.split(","):
        for name, optimizer in STARTS.items():
            folder = options.work / f"{name.replace(' ', '-')}-{seed}"
            file = folder.with_name(f"{folder.name}.json")
            if not file.exists():
                print(f"== {name}, seed {seed}", file=sys.stderr, flush=True)
                before = folder.with_name(f"{folder.name}-supernet")
                clock = time.process_time()
                network = started(
                    optimizer, space, data, before, options.supernet_epochs, int(seed)
                )
                supernet_s = time.process_time() - clock
                fit(network, data, recipe("small", epochs=options.epochs, seed=int(seed)), folder,
                    PLAIN)  # fmt: skip
                rows = found_rows(torch_detect(network.eval()), val, progress=False)
                metrics = score_rows(rows, val)
                found = {
                    "ap": round(100 * metrics.ap, 2),
                    "ap50": round(100 * metrics.ap50, 2),
                    "supernet_cpu_s": round(supernet_s),
                    "cpu_s": round(time.process_time() - clock),
                }
                write_text(file, json.dumps(found))
            done.setdefault(name, {})[seed] = json.loads(file.read_text())
    result = {
        "data": options.data.name,
        "input_size": options.input_size,
        "space": options.space,
        "supernet_epochs": options.supernet_epochs,
        "epochs": options.epochs,
        "starts": [
            {
                "start": name,
                "ap": round(statistics.mean(run["ap"] for run in runs.values()), 2),
                "ap50": round(statistics.mean(run["ap50"] for run in runs.values()), 2),
                "by_seed": runs,
            }
            for name, runs in done.items()
        ],
        "torch": torch.__version__,
    }
    tell(result, RESULTS / "first-weights" / f"{options.name}.json" if options.name else None)


if __name__ == "__main__":
    main()
