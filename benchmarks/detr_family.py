"""AP curves of DETR, SAM-DETR and their ACT and ENACT variants, all trained from scratch.

    python benchmarks/detr_family.py --data DIR --work DIR --epochs 60 --name bccd

Small networks (ResNet-18 of 16 channels, stride 16, 128 channels, three layers each) that a CPU can
train; one recipe for all of them. Those of exact attention that reach some AP are also scored with
ACT in their encoder, by five hash seeds each, as trained and after MTKD: once as in the paper, once
with two hashes, a higher learning rate and three times the epochs, for which there is a run without
MTKD too. ENACT and pool are trained in SAM-DETR's encoder, which is the same as DETR's, because
SAM-DETR reaches some AP in the few epochs that a CPU can train. Runs follow one another; finished
ones are kept, in --work or, with --name, in the result file, and interrupted ones go on. The last
line is one JSON object; with --name it goes to benchmarks/results/detr-family-NAME.json, and a
figure beside it.
"""

import argparse
import csv
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from commands import heat
from frontier import trained_with
from result import RESULTS, here, tell

from deploy.gate import torch_detect
from heat.views.charts import save
from supernet.attention import Attention
from supernet.checkpoint import load_weights
from supernet.counting import count_macs
from supernet.data.coco import load_split
from supernet.data.detection_set import DetectionSet
from supernet.data.evaluate import evaluate
from supernet.detr.detr import Host
from supernet.detr.family import FAMILY, DetrArchitecture
from supernet.heatdetr.input_size import parse_size
from supernet.network import build
from supernet.train.mtkd import act_cores, attending

SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "detr": ("detr-s", {}),
    "sam-detr": ("sam-detr-s", {}),
    "sam-detr, enact": ("sam-detr-s", {"attention": "enact", "window": 4}),
    "sam-detr, enact of 2": ("sam-detr-s", {"attention": "enact", "window": 2}),
    "sam-detr, pool": ("sam-detr-s", {"attention": "pool", "window": 4}),
}
ROUNDS = (32, 24, 20, 16)
HASHES = 5
"""Hash seeds: the number of clusters depends on them."""
LONGER = ("--learning-rate", "1e-4", "--epochs", "21")
TAUGHT: dict[str, tuple[str, ...]] = {
    "mtkd16": ("--recipe", "mtkd", "--rounds", "16"),
    "mtkd2": ("--recipe", "mtkd", "--rounds", "2", *LONGER),
    "longer": ("--recipe", "detr", *LONGER),
}
"""Further trainings of a trained network: MTKD as in the paper; stronger, as small data sets have
few steps; and one of the same length without MTKD, for comparison."""
LEARNED = 0.05
"""AP below which a network is not scored with ACT."""
RECIPE = (
    "--recipe", "small", "--learning-rate", "4e-4", "--batch-size", "8",
)  # fmt: skip


def architecture_of(system: str, options: argparse.Namespace) -> DetrArchitecture:
    """Return a system's network."""
    name, changes = SYSTEMS[system]
    size = parse_size(options.input_size)
    return FAMILY[name].with_(name=system, base=16, input_size=size, **changes)


def train(
    folder: Path, options: argparse.Namespace, architecture: DetrArchitecture, *more: Any
) -> None:
    """Run `heat train`, or continue it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "architecture.json"
    file.write_text(architecture.to_json())
    heat(
        "train", "--data", options.data, "--architecture", file, "--resume", "--out", folder, *more
    )


def curve_of(folder: Path) -> dict[str, list[float]]:
    """Return epochs and their AP."""
    with (folder / "train" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("ap")]
    return {
        "epochs": [int(row["epoch"]) for row in rows],
        "ap": [round(float(row["ap"]), 4) for row in rows],
        "ap50": [round(float(row["ap50"]), 4) for row in rows],
    }


def act_scores(
    folder: Path, architecture: DetrArchitecture, data: DetectionSet
) -> dict[str, float | list[float]]:
    """Return AP of trained weights by number of hashes, for each seed; `exact` is without ACT."""
    network = build(architecture.with_(num_classes=data.num_classes)).eval()
    load_weights(folder / "train" / "weights.safetensors", network)
    assert isinstance(network, Host)

    def score(cores: list[Attention]) -> float:
        with attending(network, cores):
            return round(evaluate(torch_detect(network), data).ap, 4)

    found: dict[str, float | list[float]] = {
        "exact": score([Attention() for _ in range(architecture.encoder_layers)])
    }
    for rounds in ROUNDS:
        found[str(rounds)] = [
            score(act_cores(network, rounds, seed=seed)) for seed in range(HASHES)
        ]
    return found


def run(system: str, seed: int, options: argparse.Namespace, val: DetectionSet) -> dict[str, Any]:
    """Train a system with one seed and score it, with ACT and MTKD too where that applies."""
    architecture = architecture_of(system, options)
    folder = options.work / f"{system.replace(', ', '-')}-{seed}"
    train(
        folder, options, architecture, *RECIPE, "--epochs", options.epochs, "--eval-every",
        options.eval_every, "--seed", seed,
    )  # fmt: skip
    stage = json.loads((folder / "run.json").read_text())["stages"]["train"]
    images = stage["images"] * stage["epochs"]
    found = {**curve_of(folder), "images": images, **trained_with(folder)}
    if architecture.attention == "exact" and found["ap"][-1] >= LEARNED:
        found["act"] = act_scores(folder, architecture, val)
        found["taught"] = {}
        for how, recipe in TAUGHT.items() if options.mtkd else ():
            taught = options.work / f"{system}-{how}-{seed}"
            train(
                taught, options, architecture, *recipe, "--batch-size", 8, "--eval-every", 0,
                "--seed", seed, "--weights", folder / "train" / "weights.safetensors",
            )  # fmt: skip
            found["taught"][how] = act_scores(taught, architecture, val)
    return found


def draw(runs: dict[str, dict[str, Any]], path: Path) -> None:
    """Plot AP against epochs, as a band over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    by_system: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, found in runs.items():
        by_system[name.rpartition(" ")[0]].append(found)
    for system, seeds in by_system.items():
        curves = list(zip(*(one["ap"] for one in seeds), strict=True))
        epochs = seeds[0]["epochs"]
        axis.plot(epochs, [statistics.mean(aps) for aps in curves], marker="o", label=system)
        axis.fill_between(
            epochs, [min(aps) for aps in curves], [max(aps) for aps in curves], alpha=0.2
        )
    axis.set(xlabel="epochs", ylabel="AP on val", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend()
    save(figure, path)


def recorded(path: Path, of: tuple[str, int, int, set[int]]) -> dict[str, Any]:
    """Return earlier runs of a result file; end where they are of other data, size or epochs."""
    before = json.loads(path.read_text())
    runs: dict[str, Any] = before["runs"]
    epochs = {found["epochs"][-1] for found in runs.values()}
    if (before["data"], before["height"], before["width"], epochs) != of:
        raise SystemExit(f"{path} is of other data, another size or other epochs: another --name")
    return runs


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="trained models are kept here")
    parser.add_argument("--input-size", default="320x320")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--eval-every", type=int, default=10)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--only", default=";".join(SYSTEMS), help="systems, semicolons between")
    parser.add_argument("--no-mtkd", dest="mtkd", action="store_false", help="ACT as trained only")
    parser.add_argument("--name")
    options = parser.parse_args()
    path = RESULTS / f"detr-family-{options.name}.json" if options.name else None
    size = parse_size(options.input_size)
    runs: dict[str, Any] = {}
    if path is not None and path.exists():
        runs = recorded(path, (options.data.name, *size, {options.epochs}))
    val = load_split(options.data, "val")
    for seed in options.seeds.split(","):
        for system in options.only.split(";"):
            name = f"{system} {seed}"
            if name not in runs:
                runs[name] = run(system, int(seed), options, val)
    conditions = here("torch", 1, size)
    result = {
        "data": options.data.name,
        "runs": runs,
        "networks": {
            system: round(count_macs(architecture_of(system, options)).total / 1e9, 3)
            for system in SYSTEMS
        },
        "recipe": " ".join(RECIPE),
        **{k: v for k, v in conditions.items() if k not in ("threads", "precision")},
    }
    tell(result, path)
    if path is not None:
        draw(runs, path.with_suffix(".svg"))


if __name__ == "__main__":
    main()
