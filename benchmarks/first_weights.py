"""What a supernet's weights are worth to a network that is trained after it, as `heat build` does.

    python benchmarks/first_weights.py --data cells --work DIR --name cells

One network of a space, half as wide, is trained with `--recipe small` from scratch, and from the
weights of supernets that were trained for a few epochs in several ways. Each is scored on val by
every seed; finished runs are kept, and interrupted ones go on, then without CPU seconds. The last
line is one JSON object; with --name it goes to benchmarks/results/first-weights/, where starts that
were not asked for keep their rows.
"""

import argparse
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kept_runs import check_result, kept_runs, mean_of, settings_of, with_earlier
from result import RESULTS, tell

from deploy.gate import torch_detect
from heat.spaces import search_space
from heat.stages.build import SHORT_RUN_LOGIT_RATE
from heat.thinning.moves import State
from supernet.data.coco import load_split
from supernet.data.detection_set import DetectionSet
from supernet.data.evaluate import evaluate
from supernet.heatdetr.architecture import WIDTH_STEP
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.inherit import inherit
from supernet.heatdetr.input_size import parse_size
from supernet.heatdetr.supernet import SearchConfig, SearchSpace, Supernet
from supernet.train.loop import fit
from supernet.train.recipes import SUPERNET, changed, recipe
from supernet.train.running import Running

STARTS: dict[str, Mapping[str, Any] | None] = {
    "from scratch": None,
    "supernet by AdamW": {"optimizer": "adamw", "vector_rate": 1.0},
    "supernet by Muon": {"vector_rate": 1.0},
    "supernet by Muon, vectors at five rates": {"vector_rate": 5.0},
}
"""How the supernet is trained: changes of its settings; None for none."""
PLAIN = Running(resume=True, workers=0)


def started(
    changes: Mapping[str, Any] | None, space: SearchSpace, data: DetectionSet, folder: Path,
    epochs: int, seed: int,
) -> Detector:  # fmt: skip
    """Return the network as it is before its own training, half as wide as the space."""
    halves = tuple((width + WIDTH_STEP) // (2 * WIDTH_STEP) * WIDTH_STEP for width in space.widths)
    network = space.template.with_(name="half", widths=halves)
    torch.manual_seed(seed)
    if changes is None:
        return Detector(network)
    supernet = Supernet(space, SearchConfig(logit_learning_rate=SHORT_RUN_LOGIT_RATE))
    config = changed(SUPERNET, epochs=epochs, seed=seed, **changes)
    fit(supernet, data, config, folder, PLAIN)
    return inherit(supernet, network, State.full(space).positions())


def train(
    start: str, seed: int, folder: Path, *, space: SearchSpace, data: DetectionSet,
    val: DetectionSet, options: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    """Train the network from one of the starts and score it."""
    clock = time.process_time()
    before = folder.with_name(f"{folder.name}-supernet")
    whole = not (before.exists() or folder.exists())  # otherwise it was interrupted before
    network = started(STARTS[start], space, data, before, options.supernet_epochs, seed)
    supernet_s = time.process_time() - clock
    fit(network, data, recipe("small", epochs=options.epochs, seed=seed), folder, PLAIN)
    metrics = evaluate(torch_detect(network.eval()), val, progress=False)
    return {
        "ap": round(100 * metrics.ap, 2),
        "ap50": round(100 * metrics.ap50, 2),
        "supernet_cpu_s": round(supernet_s) if whole else None,
        "cpu_s": round(time.process_time() - clock) if whole else None,
    }


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
    parser.add_argument("--only", help="starts, with semicolons between them")
    parser.add_argument("--name")
    options = parser.parse_args()
    settings = settings_of(options, "input_size", "space", "supernet_epochs", "epochs")
    path = RESULTS / "first-weights" / f"{options.name}.json" if options.name else None
    check_result(path, settings)
    data, val = load_split(options.data, "train"), load_split(options.data, "val")
    space = search_space(
        options.space,
        input_size=parse_size(options.input_size),
        num_classes=data.num_classes,
        output_stride=16,
    )
    run = partial(train, space=space, data=data, val=val, options=options)
    starts = options.only.split(";") if options.only else STARTS
    done = kept_runs(options.work, starts, options.seeds.split(","), settings, run)
    result = {
        **settings,
        "starts": [
            {
                "start": name,
                "ap": mean_of(runs, "ap"),
                "ap50": mean_of(runs, "ap50"),
                "by_seed": runs,
            }
            for name, runs in done.items()
        ],
        "torch": torch.__version__,
    }
    tell(with_earlier(result, path, "starts", "start"), path)


if __name__ == "__main__":
    main()
