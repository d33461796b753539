"""Memory saved by the straight-through switch: peak memory of supernet training steps.

    python benchmarks/straight_through.py --space large --input-size 320x320 --batch-size 4

Each variant takes a few optimiser steps on random images in a process of its own; the memory of the
process before the first step is subtracted from its peak. The last line is one JSON object.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from result import tell

from deploy.edge.bench import own_peak_mb
from heat.spaces import search_space
from supernet.data.ground_truth import GroundTruth
from supernet.heatdetr.input_size import parse_size
from supernet.heatdetr.supernet import SearchConfig, Supernet
from supernet.train.uniform import detection_loss

RESULTS = Path(__file__).parent / "results" / "straight-through.json"
STEPS = 4
BOXES = 8
CLASSES = 3


def steps(options: argparse.Namespace) -> float:
    """Take steps in this process; return peak MiB above its memory before them."""
    torch.manual_seed(0)
    size = parse_size(options.input_size)
    space = search_space(options.space, input_size=size, num_classes=CLASSES)
    network = Supernet(space, SearchConfig(straight_through=options.way == "straight-through"))
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    before = own_peak_mb()
    for _ in range(STEPS):
        images = torch.randint(0, 256, (options.batch_size, *size, 3), dtype=torch.uint8)
        corners = torch.rand(options.batch_size, BOXES, 2) * 0.5 * min(size)
        targets = [
            GroundTruth(torch.cat([c, c + 0.3 * min(size)], 1), torch.randint(0, CLASSES, (BOXES,)))
            for c in corners
        ]
        detection_loss(network(images), targets, network.decode).total.backward()
        optimiser.step()
        optimiser.zero_grad()
    return own_peak_mb() - before


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="large")
    parser.add_argument("--input-size", default="320x320")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--way", choices=("soft", "straight-through"), help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="keep it under benchmarks/results/")
    options = parser.parse_args()
    if options.way:
        print(steps(options))
        return
    found: dict[str, float] = {}
    for way in ("soft", "straight-through"):
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[way] = round(float(done.stdout), 1)
    result = {
        "peak_mb": found,
        "ratio": round(found["soft"] / found["straight-through"], 3),
        "space": options.space,
        "input_size": options.input_size,
        "batch_size": options.batch_size,
        "torch": torch.__version__,
    }
    tell(result, RESULTS if options.write else None)


if __name__ == "__main__":
    main()
