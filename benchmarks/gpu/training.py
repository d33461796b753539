"""Stage 7: training. AP in a few minutes, images a second against DETR-R50, peak memory.

The last stage, because it uses all the time there is.
"""

import contextlib
import io
import json
import subprocess
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import torch
from frontier import architecture_of
from stage import Stage

from deploy.gate import torch_detect
from heat.stages.build_plan import epochs_for, step_seconds
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
"""Most epochs."""
SHARE = 0.62
"""Of the stage's time, for the training; most of the rest is for evaluation and the rates."""
WORKERS = 14
SCORED = 300
"""Most images that are scored: one at a time."""
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
    """Train as many epochs as fit and score the result; a run of these data is gone on with."""
    train_set = load_split(data, "train")
    split = "val" if find_split(data, "val") else "train"
    val_set = load_split(data, split)
    architecture = network_of(stage, train_set.num_classes)
    resume = stage.result.get("trains_on") == str(data)
    epochs = stage.result.get("epochs") if resume else None
    if epochs is None:
        seconds = step_seconds(Detector(architecture), train_set)
        most = 1 if stage.rehearse else EPOCHS
        epochs = epochs_for(seconds, len(train_set.records), stage.left_s * SHARE, (1, most))
        stage.leave(trains_on=str(data), epochs=epochs, step_ms_an_image=round(seconds * 1e3, 2))
    torch.manual_seed(0)
    network = Detector(architecture)
    config = recipe("small", epochs=epochs, precision="bf16")
    running = Running(
        workers=0 if stage.rehearse else WORKERS,
        budget=Budget(stage.left_s * SHARE),  # the epochs are an estimate
        resume=resume,
        restart=not resume,
    )
    done = fit(network, train_set, config, stage.out / "run", running)
    if not done.finished_before:  # which has no times
        stage.leave(training=done.facts())
    stage.leave(gmacs=round(count_macs(architecture).total / 1e9, 3))
    scored = replace(val_set, records=val_set.records[:SCORED])
    metrics = evaluate(torch_detect(network.eval()), scored, progress=False)
    stage.leave(
        ap=metrics.ap,
        ap50=metrics.ap50,
        scored={"split": split, "images": len(scored.records), "of": len(val_set.records)},
        images_seen=done.epochs * len(train_set.records),
    )


def rates(stage: Stage, data: Path) -> None:
    """Time training steps of `medium` and DETR-R50, in a process of their own."""
    found = stage.result.get("rates", {})
    todo = [(size, batch) for size, batch in RATES if size not in found]
    for size, batch in stage.in_time(todo, 20.0):
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
    stage.leave(data=str(stage.data or "generated shapes: --data gives a detection set"))
    try:
        train(stage, data)
    except Exception as error:
        traceback.print_exc()
        stage.failed("training", error)
    if stage.device.type == "cuda":
        stage.leave(peak_memory_mib=round(torch.cuda.max_memory_allocated() / 2**20))
    if not stage.rehearse:
        rates(stage, data)


if __name__ == "__main__":
    main()
