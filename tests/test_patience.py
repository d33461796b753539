"""Trainings that stop early, and processes that wait for the one that scores."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from heat.stages.network import load_network
from heat.workspace import Workspace
from supernet.checkpoint import read_info
from supernet.data.detection_set import DetectionSet
from supernet.errors import UserError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.train.early_stop import epochs_without_gain
from supernet.train.loop import fit
from supernet.train.recipes import TrainConfig
from supernet.train.running import Running, TrainResult
from tests.short_training import first_images

from .command_line import fails, run
from .test_annotations import note
from .test_splits import pair

ROOT = Path(__file__).resolve().parents[1]
CONFIG = TrainConfig(epochs=8, batch_size=4, precision="f32", warmup_steps=2)
TINY = ["--architecture", "pico", "--input-size", "64x96", "--batch-size", 2]


@pytest.fixture
def data(shapes: Path) -> DetectionSet:
    return first_images(shapes, 4)


def train(
    smallest: Architecture, data: DetectionSet, folder: Path, aps: list[float], **changes: Any
) -> TrainResult:
    """Train with scores that are given, for each epoch one."""
    given = iter(aps)
    running = Running(judge=lambda _: {"ap": next(given)}, judge_every=1, **changes)
    torch.manual_seed(1)
    return fit(Detector(smallest), data, CONFIG, folder, running)


def test_epochs_are_counted_from_the_first_best_above_0() -> None:
    def history(*aps: float | None) -> list[dict[str, float]]:
        rows: list[dict[str, float]] = [{"epoch": epoch} for epoch in range(1, len(aps) + 1)]
        return [row if ap is None else {**row, "ap": ap} for row, ap in zip(rows, aps, strict=True)]

    assert epochs_without_gain([]) == epochs_without_gain(history(None, None)) == 0
    assert epochs_without_gain(history(0.0, 0.0, 0.0)) == 0
    assert epochs_without_gain(history(0.0, 0.1, 0.1, 0.05)) == 2
    assert epochs_without_gain(history(0.2, None, 0.1, None)) == 2  # scored every second epoch
    assert epochs_without_gain(history(0.2, 0.1, 0.3)) == 0


def test_training_stops_early_and_is_finished(
    data: DetectionSet, smallest: Architecture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """AP is highest in the third of eight epochs, so two epochs later training ends."""
    aps = [0.0, 0.1, 0.4, 0.3, 0.4, 0.9]
    done = train(smallest, data, tmp_path, aps, patience=2)
    assert (done.epochs, done.planned_epochs, done.stopped_early) == (5, 8, True)
    line = "training: stopped early at epoch 5 of 8: AP has not risen for 2 epochs (0.4000 at epoch"
    assert capsys.readouterr().err.count(line) == 1
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4", "5"]
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    (stop,) = [event for event in events if event["event"] == "early stop"]
    assert (stop["epoch"], stop["best"], stop["patience"]) == (5, 3, 2)
    assert read_info(tmp_path / "best.safetensors").epoch == 3
    info = read_info(tmp_path / "weights.safetensors")
    assert (info.epoch, info.epochs, info.finished) == (5, 8, True)

    before = (tmp_path / "weights.safetensors").read_bytes()
    for changes in ({"patience": 2}, {"patience": 2, "resume": True}, {"resume": True}):
        again = train(smallest, data, tmp_path, [], **changes)
        assert again.finished_before and again.stopped_early and again.epochs == 5
    assert line in capsys.readouterr().err
    assert (tmp_path / "weights.safetensors").read_bytes() == before


def test_a_larger_patience_goes_on_as_if_it_had_been_given_first(
    data: DetectionSet, smallest: Architecture, tmp_path: Path
) -> None:
    aps = [0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1]
    assert train(smallest, data, tmp_path / "cut", aps, patience=2).epochs == 3
    done = train(smallest, data, tmp_path / "cut", aps[3:], patience=9, resume=True)
    assert (done.epochs, done.stopped_early, done.finished_before) == (8, False, False)
    train(smallest, data, tmp_path / "whole", aps, patience=9)
    one, two = (
        torch.load(tmp_path / name / "state.pt", weights_only=True)["network"]
        for name in ("whole", "cut")
    )
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_last_epoch_is_no_early_stop(
    data: DetectionSet, smallest: Architecture, tmp_path: Path
) -> None:
    done = train(smallest, data, tmp_path, [0.4] * 8, patience=7)
    assert (done.epochs, done.stopped_early) == (8, False)


def test_patience_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that stopped early is finished: `--resume` adds no epoch, and its weights record it."""
    aps = iter([0.2, 0.1, 0.1])
    monkeypatch.setattr("heat.stages.train.judge_on", lambda _: lambda _: {"ap": next(aps)})
    root, out = pair(tmp_path / "a", [note()]), tmp_path / "run"
    options = ("--epochs", 6, "--eval-every", 1, "--patience", 1)
    command = ("train", "--data", root, *TINY, *options, "--out", out)
    code, result, errors = run(*command)
    assert code == 0 and errors.count("stopped early at epoch 2 of 6") == 1, errors
    assert (result["epochs"], result["planned_epochs"], result["stopped_early"]) == (2, 6, True)
    assert result["best"]["epoch"] == 1
    code, again, errors = run(*command, "--resume")
    assert code == 0 and again["best"] == result["best"] and again["epochs"] == 2, errors
    facts = load_network(Workspace(out)).training
    assert facts is not None and facts["stopped_early"]


def test_an_export_of_a_run_that_stopped_early_warns_of_nothing(
    data: DetectionSet, smallest: Architecture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(smallest, data, tmp_path / "train", [0.4, 0.1, 0.1], patience=1)
    load_network(Workspace(tmp_path))
    assert "training ended at epoch" not in capsys.readouterr().err


@pytest.mark.parametrize("patience", ["0", "-3"])
def test_a_patience_below_1_is_refused(shapes: Path, tmp_path: Path, patience: str) -> None:
    command = ("train", "--data", shapes, *TINY, "--out", tmp_path / "run", "--patience", patience)
    assert f"--patience {patience}: at least 1 epoch" in fails(2, *command)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("val", "more", "message"),
    [
        (None, [], "a val split and an --eval-every of at least 1 are needed"),
        ([note()], ["--eval-every", 0], "a val split and an --eval-every of at least 1"),
        ([], [], "--patience 3: no object in val, its AP is none"),
    ],
)
def test_a_patience_without_an_ap_is_refused(
    tmp_path: Path, val: list[dict[str, Any]] | None, more: list[object], message: str
) -> None:
    command = ("train", "--data", pair(tmp_path / "a", val), *TINY, "--out", tmp_path / "run")
    assert message in fails(2, *command, "--patience", 3, *more)
    assert not (tmp_path / "run").exists()


def test_a_judge_is_needed() -> None:
    with pytest.raises(UserError, match="--patience 3 compares AP"):
        Running(patience=3)


def torchrun(script: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*start, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=200,
    )


def test_processes_wait_for_the_one_that_scores(tmp_path: Path) -> None:
    """As long as is allowed, by a limit of ours: NCCL's of 10 minutes ended runs that scored."""
    script = tmp_path / "wait.py"
    script.write_text(
        "import sys, time\nfrom datetime import timedelta\nimport supernet.train.distributed as d\n"
        "if len(sys.argv) > 1:\n    d.LONGEST_WAIT = timedelta(seconds=float(sys.argv[1]))\n"
        "with d.joined() as group:\n"
        "    group.wait()\n    time.sleep(3 if group.leads else 0)\n    group.wait()\n"
    )
    too_short = torchrun(script, 1)
    assert too_short.returncode != 0 and "imed out" in too_short.stderr
    done = torchrun(script)
    assert done.returncode == 0, done.stderr


def test_all_processes_stop_early(tmp_path: Path, shapes: Path) -> None:
    """One scores; the other is told, and does not wait for a third epoch."""
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\n"
        "from supernet.heatdetr.architecture import PRESETS\n"
        "from supernet.data.coco import load_split\n"
        "from supernet.heatdetr.detector import Detector\n"
        "from supernet.train.recipes import TrainConfig\n"
        "from supernet.train.loop import Running, fit\n"
        "aps = iter([0.4, 0.3])\n"
        "running = Running(judge=lambda _: {'ap': next(aps)}, judge_every=1, patience=1)\n"
        "config = TrainConfig(epochs=9, batch_size=4, precision='f32')\n"
        "data = load_split(Path(sys.argv[1]), 'train')\n"
        "data = data.of(data.records[:4])\n"
        "network = Detector(PRESETS['pico'].with_(input_size=(64, 96), num_classes=4))\n"
        "print('epochs', fit(network, data, config, Path(sys.argv[2]), running).epochs)\n"
    )
    done = torchrun(script, shapes, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "epochs 2" in done.stdout and done.stderr.count("stopped early at epoch 2 of 9") == 1
