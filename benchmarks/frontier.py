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
file are not trained again: they race with random weights, which have the same latency.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peers_cpu import count_macs
from result import RESULTS, here, tell

from deploy.gate import torch_detect
from deploy.side_by_side import Entrant, race
from heat.views.charts import save
from heat.workspace import Workspace
from supernet.checkpoint import load_weights, read_info
from supernet.data.coco import load_split
from supernet.data.detection_set import DetectionSet
from supernet.data.evaluate import found_rows, score_rows
from supernet.heatdetr.architecture import Architecture, HeadKind
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.input_size import parse_size
from supernet.train.optimise import autocast_type

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
OURS["heat-s-one-to-one"] = OURS["heat-s"].with_(name="heat-s-one-to-one", head="one-to-one")
PEERS = ("yolo11n", "yolo26n", "rt-detr-r18", "d-fine-n", "detr-r50", "yolos-tiny")
ONE_SEED = ("rt-detr-r18", "d-fine-n", "detr-r50", "yolos-tiny")
"""Peers that are trained once: a run takes hours of a core."""
Run = tuple[str, int]
"""A model and the seed of its training."""


def folder_of(run: Run, options: argparse.Namespace) -> Path:
    """Return where a run's files are."""
    name, seed = run
    folder: Path = options.work / (f"{name}-{seed}" if seed else name)
    return folder


def architecture_of(name: str, size: tuple[int, int]) -> Architecture:
    """Return one of our networks as `heat build` ends it: output stride 16 and box voting."""
    network = OURS[name].with_(input_size=size).with_stride(16)
    return network.with_(head="voted") if network.head == "nms" else network


def train_ours(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Train one of our networks, or continue it; write its graph and its detections."""
    name, seed = run
    folder = folder_of(run, options)
    size = parse_size(options.input_size)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "architecture.json"
    architecture_of(name, size).save(file)
    if not (folder / "facts.json").exists():
        heat(
            "train", "--data", options.data, "--architecture", file, "--recipe", "small",
            "--epochs", options.epochs, "--batch-size", options.batch_size, "--eval-every", 10,
            "--seed", seed, "--resume", "--out", folder, *options.train,
        )  # fmt: skip
        network = trained(folder)
        data = load_split(options.data, "val")
        (folder / "rows.json").write_text(json.dumps(found_rows(torch_detect(network), data)))
        write_raw(network, folder / "model.onnx")
        stage: dict[str, Any] = dict(Workspace(folder).stages()["train"])
        facts = {
            "images_seen": stage["images"] * stage["epochs"],
            "seconds": round(stage["images"] * stage["epochs"] / stage["images_per_second"]),
            "batch_size": options.batch_size,
            "seed": seed,
            "head": network.architecture.head,
            "threads": torch.get_num_threads(),
            "precision": str(autocast_type("auto", torch.device("cpu")) or torch.float32),
        }
        (folder / "facts.json").write_text(json.dumps(facts))
    return json.loads((folder / "facts.json").read_text())  # type: ignore[no-any-return]


def trained(folder: Path, head: HeadKind | None = None) -> Detector:
    """Return the network that `train_ours` wrote to a folder, if asked with another head.

    `nms` and `voted` are trained in the same way.
    """
    weights = folder / "train" / "weights.safetensors"
    architecture = Architecture.from_json(read_info(weights).description)
    network = Detector(architecture if head is None else architecture.with_(head=head))
    load_weights(weights, network)
    return network.eval()


def write_raw(network: Detector, path: Path) -> None:
    """Write the graph that is timed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(network.to_onnx(raw=True).SerializeToString())


def train_peer(run: Run, options: argparse.Namespace, *more: str) -> dict[str, Any] | None:
    """Train a peer in its own environment; None where that is not possible."""
    name, seed = run
    folder = folder_of(run, options)
    if not (folder / "facts.json").exists():
        if options.peers_python is None:
            return None
        command = [
            options.peers_python, ROOT / "benchmarks" / "train_peer.py", name, "--data",
            options.data.resolve(), "--input-size", options.input_size, "--epochs", options.epochs,
            "--minutes", options.minutes, "--batch-size", options.batch_size,
            "--seed", seed, "--out", folder.resolve(), *more,
        ]  # fmt: skip
        try:
            run_command([str(part) for part in command], PYTHONPATH=str(ROOT), YOLO_OFFLINE="1")
        except subprocess.CalledProcessError as error:
            print(f"{name} left out: exit code {error.returncode}", file=sys.stderr)
            return None
    facts = folder / "facts.json"
    return json.loads(facts.read_text()) if facts.exists() else {}


def graph_of(name: str, options: argparse.Namespace, num_classes: int) -> Path:
    """Return a model's graph, with random weights where the trained one is missing."""
    path: Path = options.work / name / "model.onnx"
    if path.exists():
        return path
    if name in OURS:
        size = parse_size(options.input_size)
        network = Detector(architecture_of(name, size).with_(num_classes=num_classes))
        write_raw(network.eval(), path)
    else:
        train_peer((name, 0), options, "--untrained")
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


def heat(*arguments: object) -> None:
    """Run a heat command with its stdout on stderr."""
    run_command([sys.executable, "-m", "heat", *map(str, arguments)])


def run_command(command: list[str], **environment: str) -> None:
    """Run a command with its stdout on stderr."""
    print(" ".join(command), file=sys.stderr, flush=True)
    subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, **environment})


def scored(run: Run, options: argparse.Namespace, data: DetectionSet) -> dict[str, Any]:
    """Return the AP of a trained model's detections."""
    rows = json.loads((folder_of(run, options) / "rows.json").read_text())
    metrics = asdict(score_rows(rows, data))
    keys = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    return {key: round(metrics[key], 4) for key in keys}


def draw(models: list[dict[str, Any]], title: str, path: Path) -> None:
    """Plot mean AP against milliseconds, bars from the lowest to the highest seed, ours as a line.

    Hollow markers saw fewer images.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    most = max(model["images_seen"] for model in models)
    places = sorted({model["ms"] for model in models if not model["model"].startswith("heat-")})
    line = []
    for name in dict.fromkeys(model["model"] for model in models):
        runs = [model for model in models if model["model"] == name]
        ap = [run["ap"] for run in runs]
        mean, ms = statistics.mean(ap), runs[0]["ms"]
        ours = name.startswith("heat-")
        colour = "tab:red" if ours else "tab:blue"
        whole = all(run["images_seen"] == most for run in runs)
        axis.errorbar(
            ms, mean, yerr=[[mean - min(ap)], [max(ap) - mean]], marker="o", color=colour,
            markerfacecolor=colour if whole else "none", capsize=3,
        )  # fmt: skip
        left = ms in places[::2]  # neighbours do not overlap
        by, align = (
            ((0, 9), "center") if ours else ((-7, -3), "right") if left else ((7, -3), "left")
        )
        axis.annotate(name, (ms, mean), xytext=by, textcoords="offset points", ha=align, fontsize=8)
        if ours:
            line.append((ms, mean))
    axis.plot(*zip(*sorted(line), strict=True), color="tab:red", label="HEAT")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("")
    low, high = min(run["ap"] for run in models), max(run["ap"] for run in models)
    bottom = low - 0.3 * (high - low) if low > 0.5 * high else 0.0
    axis.margins(x=0.2)
    axis.set(
        xlabel="milliseconds, one CPU thread", ylabel="AP on val (hollow: cut off)",
        ylim=(bottom, high + 0.15 * (high - bottom)), title=title,
    )  # fmt: skip
    axis.grid(alpha=0.3)
    save(figure, path)


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
    conditions = here("onnxruntime", 1, parse_size(options.input_size))
    result = {"data": options.data.name, "models": models, **conditions}
    if options.name:
        title = f"{options.data.name} at {options.input_size}, from scratch"
        draw(models, title, RESULTS / f"frontier-{options.name}.svg")
    tell(result, RESULTS / f"frontier-{options.name}.json" if options.name else None)


if __name__ == "__main__":
    main()
