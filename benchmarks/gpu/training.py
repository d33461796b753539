"""Stage 6: training. AP in a few minutes, images a second against DETR-R50, peak memory."""

import contextlib
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from frontier import architecture_of
from stage import Stage

from deploy.gate import torch_detect
from supernet.counting import count_macs
from supernet.data.coco import find_split, load_split
from supernet.data.evaluate import evaluate
from supernet.data.shapes import make_shapes
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.train.deadline import Budget
from supernet.train.loop import fit
from supernet.train.recipes import recipe
from supernet.train.running import Running

BENCHMARKS = Path(__file__).resolve().parents[1]
EPOCHS = 400
"""More than fit: the schedule is planned anew after every epoch (`Deadline`)."""
SHARE = 0.62
"""Of the stage's time, for the training; most of the rest is for evaluation and the rates."""
RATES = (("448x448", 8), ("800x1344", 4))


def network_of(stage: Stage, classes: int) -> Architecture:
    """Return the network that is trained: heat-m, 3.1 GMACs at 448x448."""
    if stage.rehearse:
        return Architecture(
            widths=(32, 32, 32, 32), blocks=("R", "S", "W", "R"), t1_blocks=1, t2_blocks=1,
            num_classes=classes, input_size=(64, 96),
        )  # fmt: skip
    return architecture_of("heat-m", (448, 448)).with_(num_classes=classes)


def train(stage: Stage, data: Path) -> None:
    """Train as many epochs as fit and score the result."""
    train_set = load_split(data, "train")
    val_set = load_split(data, "val" if find_split(data, "val") else "train")
    architecture = network_of(stage, train_set.num_classes)
    torch.manual_seed(0)
    network = Detector(architecture)
    config = recipe("small", epochs=1 if stage.rehearse else EPOCHS, precision="bf16")
    budget = Budget(stage.left_s * SHARE)
    running = Running(workers=0 if stage.rehearse else 14, budget=budget)
    folder = stage.out / "run"
    done = fit(network, train_set, config, folder, replace(running, restart=True))
    stage.leave(training=done.facts(), gmacs=round(count_macs(architecture).total / 1e9, 3))
    metrics = evaluate(torch_detect(network.eval()), val_set, progress=False)
    stage.leave(ap=metrics.ap, ap50=metrics.ap50, images_seen=done.epochs * len(train_set.records))


def rates(stage: Stage, data: Path) -> None:
    """Time training steps of `medium` and DETR-R50, in a process of their own."""
    found = stage.result.get("rates", {})
    for size, batch in stage.in_time(RATES, 20.0):
        command = [
            sys.executable, str(BENCHMARKS / "train_speed.py"), "--data", str(data),
            "--input-size", size, "--batch-size", str(batch), "--steps", "6",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, timeout=stage.left_s
            )
            found[size] = json.loads(done.stdout.strip().splitlines()[-1])
        except (subprocess.SubprocessError, ValueError) as error:
            text = getattr(error, "stderr", None) or str(error)
            stage.failed(size, RuntimeError(str(text).strip()[-300:]))
        stage.leave(rates=found)


def main() -> None:
    """Train, score, and time."""
    stage = Stage("training")
    data = stage.data
    if data is None:
        data = stage.out / "shapes"
        with contextlib.redirect_stderr(io.StringIO()):
            make_shapes(data, train=4 if stage.rehearse else 200, val=2 if stage.rehearse else 50)
        stage.leave(data="generated shapes: --data gives a detection set")
    try:
        train(stage, data)
    finally:
        if stage.device.type == "cuda":
            stage.leave(peak_memory_mib=round(torch.cuda.max_memory_allocated() / 2**20))
    if not stage.rehearse:
        rates(stage, data)


if __name__ == "__main__":
    main()
