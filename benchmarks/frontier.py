"""AP against latency of networks trained from scratch on the same data, beside their peers.

    python benchmarks/frontier.py --data DIR --work DIR --peers-python peers/bin/python \
        --input-size 320x320 --epochs 100 --seeds 3 --name bccd

HEAT's networks are trained by `--recipe small`, peers by their own recipes (`train_peer.py`, in an
environment of its own), one after another; finished runs are kept, and interrupted ones go on. All
see the same number of images, unless --minutes ends a peer's training first; the images seen are
reported. HEAT, YOLO11n and YOLO26n are trained with --seeds seeds, the slower peers with one. AP is
that of the val split after the last epoch, by one evaluator. Latency is that of the networks
without NMS or top-k, in one interleaved race in ONNX Runtime. The last line is one JSON object;
with --name it goes to benchmarks/results/frontier-NAME.json, and a figure beside it. Runs in that
file are not trained again: they race with random weights, which have the same latency. New rows
have the date, HEAT, CPU and epochs of their training; latencies are those of the last race.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from commands import heat, run_command
from figures import draw_frontier
from kept_runs import origin, read_kept, settings_of
from peers_cpu import count_macs
from result import RESULTS, here, tell

from deploy.gate import torch_detect
from deploy.side_by_side import Entrant, race
from heat.workspace import Workspace
from latency_tables.models import randomise
from latency_tables.probe.machine import physical_cores
from supernet.atomic import write_bytes, write_text
from supernet.checkpoint import WEIGHTS, load_weights, read_info
from supernet.data.coco import load_split
from supernet.data.detection_set import DetectionSet
from supernet.data.evaluate import found_rows, score_rows
from supernet.heatdetr.architecture import Architecture, HeadKind
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.input_size import parse_size
from supernet.train.optimise import autocast_type
from supernet.train.recipes import recipe
from supernet.train.run_files import EVENTS

ROOT = Path(__file__).resolve().parents[1]

OURS = {
    "heat-xs": Architecture(
        name="heat-xs",
        widths=(32, 32, 64, 64),
        blocks=("R", "R", "RS", "R"),
        t1_blocks=1,
        t2_blocks=1,
    ),
    "heat-s": Architecture(
        name="heat-s",
        widths=(32, 64, 96, 96),
        blocks=("R", "RR", "RSW", "W"),
        t1_blocks=1,
        t2_blocks=1,
    ),
    "heat-m": Architecture(
        name="heat-m",
        widths=(64, 64, 128, 128),
        blocks=("RR", "RS", "RSWS", "WS"),
        t1_blocks=1,
        t2_blocks=2,
    ),
    "heat-l": Architecture(
        name="heat-l",
        widths=(96, 96, 160, 160),
        blocks=("RR", "RS", "RSRSWS", "RS"),
        t1_blocks=1,
        t2_blocks=2,
    ),
}
"""HEAT at four speeds."""
ONE_TO_ONE = "-one-to-one"
"""What the names of networks without NMS end in."""
OURS["heat-s-one-to-one"] = OURS["heat-s"].with_(name="heat-s-one-to-one", head="one-to-one")
PEERS = ("yolo11n", "yolo26n", "rt-detr-r18", "d-fine-n", "detr-r50", "yolos-tiny")
ONE_SEED = ("rt-detr-r18", "d-fine-n", "detr-r50", "yolos-tiny")
"""Peers that are trained once: a run takes hours of a core."""
DECIDING = ("input_size", "epochs", "batch_size", "train")
"""Options that must be the same for a kept run to be taken."""
Run = tuple[str, int]
"""A model and the seed of its training."""


def folder_of(run: Run, options: argparse.Namespace) -> Path:
    """Return where a run's files are."""
    name, seed = run
    folder: Path = options.work / (f"{name}-{seed}" if seed else name)
    return folder


def architecture_of(name: str, size: tuple[int, int]) -> Architecture:
    """Return one of our networks as `heat build` ends it: output stride 16, voted distributions.

    A name that ends in `ONE_TO_ONE` is the network of the name before it with that head.
    """
    network = OURS[name.removesuffix(ONE_TO_ONE)].with_(name=name, input_size=size).with_stride(16)
    head: HeadKind = "one-to-one" if name.endswith(ONE_TO_ONE) else "voted"
    return network.with_(head=head, boxes="distributions")


def kept(run: Run, options: argparse.Namespace) -> dict[str, Any] | None:
    """Return the facts of a finished run; end where it had other settings."""
    file = folder_of(run, options) / "facts.json"
    return read_kept(file, _settings(run, options)) if file.exists() else None


def _settings(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    own = {"schedule": recipe("small").schedule} if run[0] in OURS else {}
    return settings_of(options, *DECIDING) | own


def train_ours(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Train one of our networks, or continue it; write its graph and its detections."""
    name, seed = run
    folder = folder_of(run, options)
    file = folder / "architecture.json"
    architecture = architecture_of(name, parse_size(options.input_size))
    facts = kept(run, options)
    if facts is not None:
        if Architecture.load(file) != architecture:
            sys.exit(f"{folder} holds another network of this name: delete it, or another --work")
        return facts
    architecture.save(file)
    heat(
        "train", "--data", options.data, "--architecture", file, "--recipe", "small",
        "--epochs", options.epochs, "--batch-size", options.batch_size, "--eval-every", 10,
        "--seed", seed, "--resume", "--out", folder, *options.train,
    )  # fmt: skip
    network = trained(folder)
    data = load_split(options.data, "val")
    write_text(folder / "rows.json", json.dumps(found_rows(torch_detect(network), data)))
    write_raw(network, folder / "model.onnx")
    stage: dict[str, Any] = dict(Workspace(folder).stages()["train"])
    facts = {
        "images_seen": stage["images"] * stage["epochs"],
        "seconds": round(stage["images"] * stage["epochs"] / stage["images_per_second"]),
        "batch_size": options.batch_size,
        "seed": seed,
        "head": network.architecture.head,
        "boxes": network.architecture.boxes,
        **trained_with(folder),
        **origin(options.epochs),
    }
    settings = _settings(run, options)
    write_text(folder / "facts.json", json.dumps({**facts, "settings": settings}))
    return facts


def trained_with(folder: Path) -> dict[str, Any]:
    """Return the threads and the number format with which `heat train` trained on this CPU."""
    config: Any = read_info(folder / "train" / WEIGHTS).facts["config"]
    lines = (folder / "train" / EVENTS).read_text(encoding="utf-8").splitlines()
    # Logged where the number of threads is not fixed by the environment.
    logged = [event["threads"] for event in map(json.loads, lines) if event["event"] == "threads"]
    return {
        "threads": logged[-1] if logged else min(torch.get_num_threads(), physical_cores()),
        "precision": str(autocast_type(config["precision"], torch.device("cpu")) or torch.float32),
    }


def trained(folder: Path, head: HeadKind | None = None) -> Detector:
    """Return the network that `train_ours` wrote to a folder, if asked with another head.

    `nms` and `voted` are trained in the same way.
    """
    weights = folder / "train" / WEIGHTS
    architecture = Architecture.from_json(read_info(weights).description)
    network = Detector(architecture if head is None else architecture.with_(head=head))
    load_weights(weights, network)
    return network.eval()


def write_raw(network: Detector, path: Path) -> None:
    """Write the graph that is timed."""
    write_bytes(path, network.to_onnx(raw=True).SerializeToString())


def train_peer(run: Run, options: argparse.Namespace) -> dict[str, Any] | None:
    """Train a peer in its own environment; None where that is not possible."""
    if kept(run, options) is None:
        run_peer(run, folder_of(run, options), options)
    return kept(run, options)


def run_peer(run: Run, folder: Path, options: argparse.Namespace, *more: str) -> None:
    """Run `train_peer.py` for a folder, if there is an environment for it; report its failure."""
    name, seed = run
    if options.peers_python is None:
        return
    command = [
        options.peers_python, ROOT / "benchmarks" / "train_peer.py", name, "--data",
        options.data.absolute(), "--input-size", options.input_size, "--epochs", options.epochs,
        "--minutes", options.minutes, "--batch-size", options.batch_size,
        "--seed", seed, "--out", folder.resolve(), *more,
    ]  # fmt: skip
    try:
        run_command([str(part) for part in command], PYTHONPATH=str(ROOT), YOLO_OFFLINE="1")
    except subprocess.CalledProcessError as error:
        print(f"{name} left out: exit code {error.returncode}", file=sys.stderr)


def graph_of(name: str, options: argparse.Namespace, num_classes: int) -> Path:
    """Return a model's graph, with random weights where the trained one is missing."""
    if kept((name, 0), options) is not None:
        return folder_of((name, 0), options) / "model.onnx"
    untrained = f"{name}-{options.data.name}-{options.input_size}"
    path: Path = options.work / "untrained" / untrained / "model.onnx"
    if path.exists():
        return path
    if name in OURS:
        size = parse_size(options.input_size)
        network = Detector(architecture_of(name, size).with_(num_classes=num_classes)).eval()
        randomise(network)
        write_raw(network, path)
    else:
        run_peer((name, 0), path.parent, options, "--untrained")
    if not path.exists():
        raise SystemExit(f"{name} cannot be timed here: --peers-python is needed for it")
    return path


def recorded(options: argparse.Namespace) -> dict[Run, dict[str, Any]]:
    """Return the results of runs that were trained before, without their latencies."""
    path = RESULTS / f"frontier-{options.name}.json"
    if not options.name or not path.exists():
        return {}
    result = json.loads(path.read_text())
    of = (options.data.name, *parse_size(options.input_size))
    if (result["data"], result["height"], result["width"]) != of:
        raise SystemExit(f"{path} is of {result['data']}, or of another size: another --name")
    return {
        (row["model"], row["seed"]): {
            k: v for k, v in row.items() if k not in ("model", "ms", "gmacs")
        }
        for row in result["models"]
    }


def scored(run: Run, options: argparse.Namespace, data: DetectionSet) -> dict[str, Any]:
    """Return the AP of a trained model's detections."""
    rows = json.loads((folder_of(run, options) / "rows.json").read_text())
    metrics = asdict(score_rows(rows, data))
    keys = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    return {key: round(metrics[key], 4) for key in keys}


def parser_of(text: str | None) -> argparse.ArgumentParser:
    """Return a parser of the training options."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="trained models are kept here")
    parser.add_argument("--input-size", default="320x320")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--name")
    parser.add_argument("train", nargs="*", help="more options of heat train, after --")
    return parser


def main() -> None:
    """Run the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--peers-python", help="Python of the peers' environment")
    parser.add_argument("--only", default=",".join((*OURS, *PEERS)))
    parser.add_argument("--minutes", type=float, default=1e9, help="of a peer's training, at most")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=1, help="runs of each model, from seed 0 on")
    options = parser.parse_args()
    data = load_split(options.data, "val")
    done = recorded(options)
    for name in {name for name, _ in done}:
        graph_of(name, options, data.num_classes)  # now: missing ones are not to be found last
    runs = [
        (name, seed)
        for seed in range(options.seeds)
        for name in options.only.split(",")
        if seed == 0 or name not in ONE_SEED
    ]
    for one in runs:
        if one in done:
            continue
        facts = train_ours(one, options) if one[0] in OURS else train_peer(one, options)
        if facts is not None:
            done[one] = scored(one, options, data) | facts
    graphs = {name: graph_of(name, options, data.num_classes) for name, _ in done}
    laps = race(
        [Entrant(name=name, model=path, runtime="onnxruntime") for name, path in graphs.items()],
        rounds=options.rounds,
    )
    latency = {lap.name: round(lap.p50_ms, 3) for lap in laps}
    gmacs = {name: round(count_macs(path) / 1e9, 3) for name, path in graphs.items()}
    models = [
        {**found, "model": name, "seed": seed, "ms": latency[name], "gmacs": gmacs[name]}
        for (name, seed), found in done.items()
    ]
    models.sort(key=lambda model: -model["ap"])
    seen = sorted({model["images_seen"] for model in models})
    if len(seen) > 1:
        print(f"warning: rows of {seen} images seen are in one result", file=sys.stderr)
    conditions = here("onnxruntime", 1, parse_size(options.input_size))
    result = {"data": options.data.name, "models": models, **conditions}
    tell(result, RESULTS / f"frontier-{options.name}.json" if options.name else None)
    if options.name:
        title = f"{options.data.name} at {options.input_size}, from scratch"
        draw_frontier(models, title, RESULTS / f"frontier-{options.name}.svg")


if __name__ == "__main__":
    main()
