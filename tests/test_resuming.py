"""A training that was ended goes on to the same result."""

import csv
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import supernet.train.loop as training
from supernet.atomic import replacing
from supernet.checkpoint import load_weights, read_info
from supernet.data.augment import AugmentConfig
from supernet.data.detection_set import DetectionSet
from supernet.errors import CheckpointError, UserError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.train.loop import fit
from supernet.train.optimise import Averaged, make_optimizer
from supernet.train.recipes import TrainConfig
from supernet.train.run_files import RunFiles
from supernet.train.running import Running
from supernet.train.task import task_of
from tests.short_training import CONFIG, first_images, weights


@pytest.fixture
def data(shapes: Path) -> DetectionSet:
    return first_images(shapes, 9)


def test_interrupted_and_resumed_equals_uninterrupted(
    data: DetectionSet, small: Architecture, tmp_path: Path
) -> None:
    """Bit-exact on one machine: an interruption at any epoch changes nothing."""

    class StopError(Exception):
        pass

    def stop(epoch: int, _: dict[str, float]) -> None:
        if epoch == 1:
            raise StopError

    torch.manual_seed(1)
    fit(Detector(small), data, CONFIG, tmp_path / "whole")
    torch.manual_seed(1)
    with pytest.raises(StopError):
        fit(Detector(small), data, CONFIG, tmp_path / "cut", on_epoch=stop)
    with pytest.raises(CheckpointError, match="--resume goes on"):
        fit(Detector(small), data, CONFIG, tmp_path / "cut")
    fit(Detector(small), data, CONFIG, tmp_path / "cut", Running(resume=True))
    one, two = (weights(tmp_path / name / "weights.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_killed_within_an_epoch(
    data: DetectionSet, small: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit-exact too where the state was saved in the middle of an epoch, with workers."""
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)
    config = replace(
        CONFIG, batch_size=2, drop_path=0.3, accumulate=2, augment=AugmentConfig(mosaic=0.5)
    )
    torch.manual_seed(1)
    fit(Detector(small), data, config, tmp_path / "whole")

    class KilledError(Exception):
        pass

    real = RunFiles.save_state

    def once(self: RunFiles) -> None:
        real(self)
        if (self.epoch, self.steps) == (1, 1):
            raise KilledError

    torch.manual_seed(1)
    with monkeypatch.context() as patched:
        patched.setattr(RunFiles, "save_state", once)
        with pytest.raises(KilledError):
            fit(Detector(small), data, config, tmp_path / "cut")
    again = Running(resume=True, workers=1)
    fit(Detector(small), data, config, tmp_path / "cut", again)
    one, two = (weights(tmp_path / name / "weights.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_finished_run_can_become_longer(
    data: DetectionSet, small: Architecture, tmp_path: Path
) -> None:
    fit(Detector(small), data, CONFIG, tmp_path)
    longer = replace(CONFIG, epochs=3)
    with pytest.raises(CheckpointError, match="epoch 2 of 3: --resume goes on"):
        fit(Detector(small), data, longer, tmp_path)
    assert fit(Detector(small), data, longer, tmp_path, Running(resume=True)).epochs == 3
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[2]["classes"]) > 0 and float(rows[2]["memory_mb"]) > 0
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["epoch", "epoch", "resume", "epoch"]
    with pytest.raises(CheckpointError, match="past --epochs 2"):
        fit(Detector(small), data, CONFIG, tmp_path, Running(resume=True))


def test_a_state_that_cannot_be_read_is_not_called_broken(
    data: DetectionSet, small: Architecture, tmp_path: Path
) -> None:
    (tmp_path / "state.pt").mkdir()
    with pytest.raises(CheckpointError, match=r"^cannot read .*state.pt: "):
        fit(Detector(small), data, CONFIG, tmp_path)


def test_averages_keep_their_device_and_losses_their_scale(
    data: DetectionSet, small: Architecture, tmp_path: Path
) -> None:
    """A run goes on where it was, on whatever device, and with the scale that f16 had found."""

    def files() -> tuple[RunFiles, torch.amp.GradScaler]:
        task = task_of(Detector(small), data)
        config, cpu = TrainConfig(epochs=2), torch.device("cpu")
        optimizer = make_optimizer(task.parameter_groups(config), config, cpu)
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(torch.zeros(()))  # makes its tensors
        average = Averaged(task.network, 0.9)
        return RunFiles(tmp_path, task, config, optimizer, average, scaler=scaler), scaler

    run, scaler = files()
    scaler.update(512.0)
    key = next(iter(run.average.weights))
    run.average.weights[key] += 1
    run.save_state()
    again, scaler = files()
    own = again.average.weights[key]
    again.load(resume=True, restart=False)
    assert scaler.get_scale() == 512.0
    assert again.average.weights[key] is own and torch.equal(own, run.average.weights[key])


def test_a_state_of_other_parameter_groups_is_refused(
    data: DetectionSet, small: Architecture, tmp_path: Path
) -> None:
    config = TrainConfig(epochs=2, optimizer="muon")

    def files(count: int) -> RunFiles:
        task = task_of(Detector(small), data)
        groups = task.parameter_groups(config)[:count]
        optimizer = make_optimizer(groups, config, torch.device("cpu"))
        return RunFiles(tmp_path, task, config, optimizer, Averaged(task.network, 0.9))

    files(1).save_state()
    with pytest.raises(CheckpointError, match="groups the weights otherwise: --restart"):
        files(2).load(resume=True, restart=False)


def test_a_term_that_begins_late_has_the_mean_of_its_own_batches(
    data: DetectionSet, smallest: Architecture, tmp_path: Path
) -> None:
    task, config = task_of(Detector(smallest), data), TrainConfig(epochs=2)
    optimizer = make_optimizer(task.parameter_groups(config), config, torch.device("cpu"))
    run = RunFiles(tmp_path, task, config, optimizer, Averaged(task.network, 0.9))
    run.add({"boxes": 1.0}, 1)
    run.add({"boxes": 3.0, "unlabelled": 4.0}, 1)
    assert run.means() == {"boxes": 2.0, "unlabelled": 4.0}


def test_scores_of_another_val_split_are_not_compared(
    data: DetectionSet, smallest: Architecture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running = Running(judge=lambda network: {"ap": 0.9}, judge_every=1, judged_on="easy")
    fit(Detector(smallest), data, replace(CONFIG, epochs=1), tmp_path, running)
    assert (tmp_path / "best.safetensors").exists()
    other = replace(running, judge=lambda network: {"ap": 0.1}, judged_on="hard", resume=True)
    fit(Detector(smallest), data, CONFIG, tmp_path, other)
    history = read_info(tmp_path / "weights.safetensors").history
    assert [row.get("ap") for row in history] == [None, 0.1]
    assert read_info(tmp_path / "best.safetensors").epoch == 2
    assert "the val split has changed" in capsys.readouterr().err


def test_a_finished_run_is_kept(data: DetectionSet, small: Architecture, tmp_path: Path) -> None:
    fit(Detector(small), data, CONFIG, tmp_path)
    before = (tmp_path / "weights.safetensors").read_bytes()
    assert fit(Detector(small), data, CONFIG, tmp_path).finished_before
    assert (tmp_path / "weights.safetensors").read_bytes() == before
    with pytest.raises(CheckpointError, match="other settings"):
        fit(Detector(small), data, replace(CONFIG, seed=1), tmp_path, Running(resume=True))


def test_truncated_files_are_named(data: DetectionSet, small: Architecture, tmp_path: Path) -> None:
    fit(Detector(small), data, replace(CONFIG, epochs=1), tmp_path)
    for name in ("weights.safetensors", "state.pt"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is truncated"):
        read_info(tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"state\.pt is truncated"):
        fit(Detector(small), data, CONFIG, tmp_path, Running(resume=True))
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_info(tmp_path / "none.safetensors")


def test_other_weights_are_refused(data: DetectionSet, small: Architecture, tmp_path: Path) -> None:
    fit(Detector(small), data, replace(CONFIG, epochs=1), tmp_path)
    other = Detector(small.with_(widths=(32, 64, 64, 64)))
    with pytest.raises(CheckpointError, match="does not fit"):
        load_weights(tmp_path / "weights.safetensors", other)


def test_files_are_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="cannot write"), replacing(tmp_path / "file.txt" / "x"):
        pass


def test_killed_and_resumed(shapes: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of training; `--resume` goes on from the last finished epoch."""
    command = [
        sys.executable, "-m", "heat", "train", "--data", str(shapes), "--architecture", "pico",
        "--input-size", "96x128", "--epochs", "40", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    state = tmp_path / "run" / "train" / "state.pt"
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = torch.load(state, weights_only=True)["epoch"]
    assert 1 <= reached < 40
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--resume goes on" in done.stderr
    short = [*command, "--resume"]
    process = subprocess.Popen(short, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if torch.load(state, weights_only=True)["epoch"] > reached:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert torch.load(state, weights_only=True)["epoch"] > reached
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1].startswith("error: interrupted")
    assert "Traceback" not in errors
