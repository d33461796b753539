"""Training in several processes under torchrun, with the gloo backend of CPUs."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from supernet.errors import HeatError, UserError
from supernet.train.distributed import Group, own_device, per_process, seed_step, step_seed
from supernet.train.optimise import make_scaler
from supernet.train.recipes import TrainConfig
from supernet.train.stepper import Stepper

ROOT = Path(__file__).resolve().parents[1]


def supernet(
    out: Path, data: Path, processes: int, *more: object, batch_size: int = 8
) -> tuple[int, str, str]:
    """Train a small supernet; one process runs without torchrun."""
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    asked = ["--data", data, "--space", "micro", "--input-size", "96x128", "--epochs", 2]
    asked += ["--batch-size", batch_size, "--train-precision", "f32", "--out", out, *more]
    command = [*start, "heat", "supernet", *map(str, asked)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300
    )
    return done.returncode, done.stdout, done.stderr


def test_two_processes_train_one_supernet(shapes: Path, tmp_path: Path) -> None:
    code, out, errors = supernet(tmp_path / "two", shapes, 2)
    assert code == 0, errors
    lines = [line for line in out.splitlines() if line.startswith("{")]
    assert len(lines) == 1 and json.loads(lines[0])["epochs"] == 2
    weights = load_file(tmp_path / "two/supernet/weights.safetensors")
    assert all(bool(value.isfinite().all()) for value in weights.values())


def test_a_run_is_resumed_on_another_number_of_processes(shapes: Path, tmp_path: Path) -> None:
    stop = "import supernet.train.loop as t\n"
    program = (
        f"{stop}"
        "import heat.cli\n"
        "finish = t.RunFiles.finish\n"
        "def once(self, *given):\n"
        "    finish(self, *given)\n"
        "    raise KeyboardInterrupt\n"
        "t.RunFiles.finish = once\n"
        "import sys\n"
        "sys.exit(heat.cli.main(sys.argv[1:]))\n"
    )
    asked = ["--data", shapes, "--space", "micro", "--input-size", "96x128", "--epochs", 2]
    asked += ["--batch-size", 8, "--train-precision", "f32", "--out", tmp_path]
    command = [sys.executable, "-c", program, "supernet", *map(str, asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 130, done.stderr
    code, out, errors = supernet(tmp_path, shapes, 2, "--resume")
    assert code == 0, errors
    assert json.loads(out.splitlines()[-1])["epochs"] == 2


def test_too_few_images_for_the_processes_are_refused(shapes: Path, tmp_path: Path) -> None:
    code, _, errors = supernet(tmp_path, shapes, 2, batch_size=2)
    assert code != 0
    assert "at least two images for each of 2 processes" in errors


def test_batches_are_accumulated(shapes: Path, tmp_path: Path) -> None:
    code, out, errors = supernet(tmp_path, shapes, 1, "--accumulate", 2)
    assert code == 0, errors
    result = json.loads(out.splitlines()[-1])
    assert result["skipped_steps"] == 0


def test_accumulated_batches_make_one_step() -> None:
    """The same step as their images at once: nothing here looks at other images of a batch."""
    torch.manual_seed(0)
    given, wanted = torch.randn(8, 3), torch.randn(8, 2)
    whole = [(given, wanted)]
    parts = [(given[:4], wanted[:4]), (given[4:], wanted[4:])]
    found = []
    for batches in (whole, parts):
        network = nn.Linear(3, 2)
        nn.init.constant_(network.weight, 0.1)
        nn.init.zeros_(network.bias)
        task: Any = SimpleNamespace(
            network=network, model=network, turns=1, turn=0,
            prepare=lambda batch, config: batch,
            loss=lambda outputs, targets, config: {"l": (outputs - targets).square().mean()},
        )  # fmt: skip
        config = TrainConfig(epochs=1, batch_size=8, precision="f32", clip_norm=1e9)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
        scaler = make_scaler("f32", torch.device("cpu"))
        assert Stepper(task, config, optimizer, scaler, Group()).step(batches) is not None
        found.append(network.weight.detach().clone())
    torch.testing.assert_close(*found)


def test_losses_are_divided_by_the_count_of_the_whole_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A share of a batch without positives weighed its classes as if it had one."""
    assert float(per_process(torch.tensor(0.0))) == 1.0
    assert float(per_process(torch.tensor(15.0))) == 15.0

    def all_reduce(count: torch.Tensor, *_: object) -> None:
        count += 15.0  # of the other process

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
    mine = torch.tensor(1.0)
    assert float(per_process(mine)) == 8.0 and float(mine) == 1.0


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert own_device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"2 processes here.* there are 1: --nproc-per-node 1"):
        own_device()


def test_out_of_memory_in_one_process_ends_the_run_at_once() -> None:
    """It tried smaller batches, while the others waited for its gradients for a day."""

    def loss(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory")

    network = nn.Linear(1, 1)
    task: Any = SimpleNamespace(
        network=network, model=network, turns=1, turn=0, prepare=lambda batch, _: batch, loss=loss
    )
    group: Any = SimpleNamespace(world=2, device=torch.device("cpu"), wrap=lambda model: model)
    config = TrainConfig(epochs=1, batch_size=8, precision="f32")
    optimizer = torch.optim.SGD(network.parameters())
    stepper = Stepper(task, config, optimizer, make_scaler("f32", group.device), group)
    with pytest.raises(HeatError, match="--batch-size 8 in one of 2 processes"):
        stepper.step([(torch.zeros(4, 1), torch.zeros(4, 1))] * 2)


def test_a_step_has_one_seed_in_all_processes() -> None:
    seeds = set()
    for rank in range(3):
        seed_step(7, 41, rank)
        seeds.add(step_seed())
    seed_step(7, 42, 0)
    assert len(seeds) == 1 and step_seed() not in seeds
