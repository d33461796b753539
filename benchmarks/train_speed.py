"""Training speed of a HEAT network and DETR-R50: images per second, same machine, size, batch.

    PYTHONPATH=. peers/bin/python benchmarks/train_speed.py --data DIR --input-size 448x448 \
        --name cpu-448x448

Runs in the peers' environment (see `peers.py`). A step is forward pass, matching, loss, backward
pass and AdamW of all weights (transformers freezes the backbone, for pretrained ones), on the same
images; turns alternate between the networks, and medians count. Peak memory on a GPU includes the
weights of both. Both use the autocast that `heat
train --precision auto` chooses; with --precision f32 neither does. Loading is measured separately:
augmented images per second of one worker process, over the network's. The last line is one JSON
object; with --name it goes to benchmarks/results/train-speed/.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peers import PEERS, thawed
from result import tell
from train_peer import labelled, prepared

from supernet.data.coco import load_split
from supernet.data.detection_set import DetectionSet
from supernet.heatdetr.architecture import preset
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.input_size import parse_size
from supernet.train.aligned import training_loss
from supernet.train.feed import feed
from supernet.train.optimise import autocast_type, parameter_groups
from supernet.train.recipes import recipe

RESULTS = Path(__file__).parent / "results" / "train-speed"
LAYOUT = torch.channels_last
"""Of the weights and images of both, as `heat train` has it."""


def loaded_a_second(data: DetectionSet, size: tuple[int, int], batches: int) -> float:
    """Return the images per second that one worker process loads, alone on the machine."""
    config = recipe("small")
    source = feed(data, size, config, range(100), workers=1)
    images = sum(len(batch) for batch, _ in islice(source, 8))  # the queue is full
    start = time.perf_counter()
    images = sum(len(batch) for batch, _ in islice(source, batches))
    return images / (time.perf_counter() - start)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--preset", default="medium")
    parser.add_argument("--input-size", default="448x448")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--precision", choices=("auto", "f32"), default="auto")
    parser.add_argument("--compile", action="store_true", help="ours once more, compiled by torch")
    parser.add_argument("--name")
    options = parser.parse_args()
    size = parse_size(options.input_size)
    data = load_split(options.data, "train")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = autocast_type(options.precision, device)
    config = recipe("small", batch_size=options.batch_size)
    images, targets = next(feed(data, size, config, range(1)))
    images, targets = images.to(device), [target.to(device) for target in targets]
    ours = Detector(preset(options.preset, input_size=size, num_classes=data.num_classes))
    theirs = thawed(PEERS["detr-r50"](size, data.num_classes).model)
    theirs_images = prepared("detr-r50", images.cpu()).to(device, memory_format=LAYOUT)
    labels = [
        {key: value.to(device) for key, value in label.items()}
        for label in labelled([target.to(torch.device("cpu")) for target in targets], size)
    ]

    def our_loss(network: Any) -> Any:
        return training_loss(network(images), targets, ours.decode, config.assign).total

    def their_loss(network: Any) -> Any:
        return network(pixel_values=theirs_images, labels=labels).loss

    name = f"heat-{options.preset}"
    ours.to(device, memory_format=LAYOUT).train()
    theirs.to(device, memory_format=LAYOUT).train()
    groups = parameter_groups(ours, config)
    entrants: list[tuple[str, Any, Any, Any]] = [
        (name, ours, our_loss, groups),
        ("detr-r50", theirs, their_loss, theirs.parameters()),
    ]
    if options.compile:
        entrants.append((f"{name} compiled", torch.compile(ours), our_loss, groups))
    steps: dict[str, Callable[[], None]] = {}
    for entrant, network, loss, parameters in entrants:
        optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
        steps[entrant] = stepper(optimizer, partial(loss, network), device, dtype)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    peak_mib: dict[str, int] = {}
    for turn in range(options.steps + 1):
        for entrant, step in steps.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                peak_mib[entrant] = round(torch.cuda.max_memory_allocated() / 2**20)
            if turn:  # the first step allocates and compiles
                seconds[entrant].append(time.perf_counter() - start)
    rates = {name: options.batch_size / statistics.median(times) for name, times in seconds.items()}
    first, second = seconds[name], seconds["detr-r50"]
    supply = loaded_a_second(data, size, 20)
    result = {
        "images_per_second": {name: round(rate, 3) for name, rate in rates.items()},
        "ratio": round(statistics.median(b / a for a, b in zip(first, second, strict=True)), 3),
        "loaded_images_per_second": round(supply, 1),
        "loading_over_training": round(supply / rates[name], 2),
        "peak_memory_mib": peak_mib,
        "batch_size": options.batch_size,
        "height": size[0],
        "width": size[1],
        "autocast": str(dtype),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }
    tell(result, RESULTS / f"{options.name}.json" if options.name else None)


def stepper(
    optimizer: torch.optim.Optimizer,
    loss: Callable[[], Any],
    device: torch.device,
    dtype: torch.dtype | None,
) -> Callable[[], None]:
    """Return a function that runs one training step."""

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            value = loss()
        value.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


if __name__ == "__main__":
    main()
