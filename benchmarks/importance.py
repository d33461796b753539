"""Do the selection logits predict importance? Importance against AP lost without a position.

    python benchmarks/importance.py --data DIR --epochs 60 --seeds 2 --name bccd

For each seed a supernet is trained (or found under --out). Then every position is removed, one at a
time, from the network of the largest logits; BatchNorm is recalibrated and the network scored on
images that the supernet was not trained on, each split by itself. The result is Spearman's rank
correlation between importance M and the AP lost, and the rise of the loss, as means over the
splits. `spearman_halves` is the correlation between the APs of two splits: no prediction can be
expected to agree with an evaluation better than two evaluations agree with each other. The last
line is one JSON object.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from figures import draw_importance
from result import tell

from heat.spaces import search_space
from heat.stages.supernet import train_supernet
from heat.thinning.evaluation import Evaluations
from heat.thinning.moves import State, importance
from heat.thinning.proxies import spearman
from heat.thinning.source import load_source
from heat.workspace import Workspace
from supernet.data.coco import load_split
from supernet.heatdetr.input_size import parse_size
from supernet.heatdetr.place import local_name
from supernet.heatdetr.supernet import SearchConfig
from supernet.train.recipes import SUPERNET
from supernet.train.running import Running

RESULTS = Path(__file__).parent / "results" / "importance"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--space", default="base")
    parser.add_argument("--input-size", default="256x320")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--splits", default="val,test", help="what AP and loss are read on")
    parser.add_argument("--logit-learning-rate", type=float, default=1e-2)
    parser.add_argument("--noise", default="gumbel")
    parser.add_argument("--tau-start", type=float, default=5.0)
    parser.add_argument("--tau-end", type=float, default=0.1)
    parser.add_argument("--frozen-share", type=float, default=0.1)
    parser.add_argument("--out", type=Path, help="keeps the supernets; a temporary folder else")
    parser.add_argument("--name")
    options = parser.parse_args()
    size = parse_size(options.input_size)
    train = load_split(options.data, "train")
    splits = [load_split(options.data, name) for name in options.splits.split(",")]
    space = search_space(options.space, input_size=size, num_classes=train.num_classes)
    seeds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(options.seeds):
            workspace = Workspace((options.out or Path(scratch)) / f"seed{seed}")
            search = SearchConfig(
                noise=options.noise,
                logit_learning_rate=options.logit_learning_rate,
                tau_start=options.tau_start,
                tau_end=options.tau_end,
                frozen_share=options.frozen_share,
            )
            config = replace(SUPERNET, epochs=options.epochs, seed=seed)
            train_supernet(workspace, train, space, config, search, running=Running(resume=True))
            source = load_source(workspace, space)
            assert source.supernet is not None
            evaluations = [
                Evaluations(source.supernet, space, train, source.logits, scored=split)
                for split in splits
            ]
            full = State.full(space)
            bases = [(evaluation.ap(full), evaluation.loss(full)) for evaluation in evaluations]
            rows = []
            for place in full.allowed:
                without = full.without(place)
                lost = [
                    base - evaluation.ap(without)
                    for evaluation, (base, _) in zip(evaluations, bases, strict=True)
                ]
                risen = [
                    evaluation.loss(without) / base - 1
                    for evaluation, (_, base) in zip(evaluations, bases, strict=True)
                ]
                rows.append(
                    {
                        "position": local_name(*place),
                        "importance": round(importance(full, place, source.logits), 5),
                        "ap_lost": round(mean(lost), 4),
                        "ap_lost_by_split": [round(value, 4) for value in lost],
                        "loss_risen": round(mean(risen), 5),
                    }
                )
            weights = [row["importance"] for row in rows]
            by_split = list(zip(*(row["ap_lost_by_split"] for row in rows), strict=True))
            seeds.append(
                {
                    "seed": seed,
                    "ap": round(mean(ap for ap, _ in bases), 3),
                    "spearman_ap": round(spearman(weights, [r["ap_lost"] for r in rows]), 4),
                    "spearman_loss": round(spearman(weights, [r["loss_risen"] for r in rows]), 4),
                    "spearman_halves": round(spearman(*by_split[:2]), 4) if by_split[1:] else None,
                    "positions": rows,
                }
            )
            print(json.dumps({k: v for k, v in seeds[-1].items() if k != "positions"}), flush=True)
    result = {
        "spearman_ap": [seed["spearman_ap"] for seed in seeds],
        "spearman_loss": [seed["spearman_loss"] for seed in seeds],
        "spearman_halves": [seed["spearman_halves"] for seed in seeds],
        "supernet_ap": [seed["ap"] for seed in seeds],
        "data": options.data.name,
        "settings": {k: v for k, v in vars(options).items() if k not in ("data", "out", "name")},
        "seeds": seeds,
    }
    tell(result, RESULTS / f"{options.name}.json" if options.name else None)
    if options.name:
        points = [(r["importance"], r["ap_lost"], s["seed"]) for s in seeds for r in s["positions"]]
        draw_importance(points, RESULTS / f"{options.name}.svg")


if __name__ == "__main__":
    main()
