"""Stage 6: nccl with one process, and a run that began on the GPU and is resumed on the CPU.

In a rehearsal gloo and the CPU take both parts.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import torch
import torch.distributed as dist
from stage import Stage
from torch.nn.parallel import DistributedDataParallel

from supernet.checkpoint import read_info
from supernet.data.shapes import make_shapes
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.train.distributed import Group

TINY = Architecture(
    name="tiny-one", widths=(32, 32, 32, 32), blocks=("R", "S", "W", "R"), t1_blocks=1, t2_blocks=1,
    num_classes=3, input_size=(64, 96),
)  # fmt: skip


def collectives(stage: Stage) -> None:
    """Join a group of one, and take a step with averaged gradients."""
    backend = "gloo" if stage.rehearse else "nccl"
    with tempfile.NamedTemporaryFile() as file:
        dist.init_process_group(
            backend, init_method=f"file://{file.name}-store", rank=0, world_size=1
        )
        try:
            group = Group(0, 1, stage.device)
            value = torch.ones(4, device=stage.device)
            dist.all_reduce(value)
            dist.barrier()
            network = DistributedDataParallel(Detector(TINY).to(stage.device).train())
            image = torch.zeros(2, *TINY.input_size, 3, dtype=torch.uint8, device=stage.device)
            sum(output.square().mean() for output in network(image)).backward()
            assert group.all_agree(True) and bool(value.eq(1).all())
            finite = all(
                bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None
            )
            stage.leave(backend=backend, gradients_finite=finite)
        finally:
            dist.destroy_process_group()


def resumed(stage: Stage) -> None:
    """Stop a training after its first epoch, and finish it on the CPU."""
    data = stage.out / "shapes"
    make_shapes(data, train=8, val=2)
    file = stage.out / "architecture.json"
    TINY.save(file)
    command = [
        sys.executable, "-m", "heat", "train", "--data", str(data), "--architecture", str(file),
        "--recipe", "small", "--epochs", "400", "--batch-size", "4", "--eval-every", "0",
        "--precision", "f32", "--workers", "0", "--out", str(stage.out / "run"),
    ]  # fmt: skip
    shutil.rmtree(stage.out / "run", ignore_errors=True)  # of a run before: it would be finished
    weights = stage.out / "run" / "train" / "weights.safetensors"
    latest_s = stage.left_s / 2
    started = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while started.poll() is None and not weights.exists() and stage.left_s > latest_s:
        time.sleep(0.1)
    started.send_signal(signal.SIGTERM)
    _, errors = started.communicate()
    if not weights.exists():
        raise SystemExit(f"no epoch was trained: {errors.strip()[-300:]}")
    before = len(read_info(weights).history)
    stage.leave(epochs_on_the_gpu=before)
    command[command.index("400")] = str(before + 1)
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, "--resume"], env=hidden, capture_output=True, text=True, check=False,
        timeout=max(1.0, stage.left_s),
    )  # fmt: skip
    after = len(read_info(weights).history)
    stage.leave(epochs_after_the_cpu=after, resume_code=done.returncode)
    if done.returncode or after <= before:
        raise SystemExit(f"not resumed on the CPU: {done.stderr.strip()[-300:]}")


def main() -> None:
    """Run both."""
    stage = Stage("nccl")
    collectives(stage)
    resumed(stage)


if __name__ == "__main__":
    main()
