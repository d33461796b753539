import contextlib
import csv
import io
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import supernet.train.loop as training
import supernet.train.task as task
from supernet.atomic import replacing
from supernet.checkpoint import load_weights, read_info
from supernet.data.augment import AugmentConfig
from supernet.data.coco import load_split
from supernet.data.detection_set import DetectionSet, Record
from supernet.errors import CheckpointError, DataError, HeatError, UserError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.supernet import SearchConfig, SearchSpace, Supernet
from supernet.train.distributed import Group
from supernet.train.loop import fit
from supernet.train.not_learning import signs
from supernet.train.optimise import Averaged, make_optimizer, rate_factor
from supernet.train.recipes import RECIPES, TrainConfig, recipe
from supernet.train.run_files import RunFiles
from supernet.train.running import Running
from supernet.train.shown import augment_of
from supernet.train.task import task_of
from tests.conftest import UNIT

CONFIG = TrainConfig(epochs=2, batch_size=4, precision="f32", warmup_steps=2)


@pytest.fixture
def data(shapes: Path) -> DetectionSet:
    found = load_split(shapes, "train")
    return replace(found, records=found.records[:9])


@pytest.fixture
def small(unit: Architecture) -> Architecture:
    return unit.with_(input_size=(96, 128), num_classes=4, blocks=("R", "S", "RW", "W"))


def weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def test_loss_falls(data: DetectionSet, small: Architecture, tmp_path: Path) -> None:
    losses: list[float] = []
    config = replace(CONFIG, epochs=15, learning_rate=2e-3)

    def keep(_: int, means: dict[str, float]) -> None:
        losses.append(means["classes"] + means["boxes"])

    fit(Detector(small), data, config, tmp_path, on_epoch=keep)
    assert losses[-1] < 0.9 * losses[0]


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


def test_averaged_weights_are_judged(
    data: DetectionSet, small: Architecture, tmp_path: Path
) -> None:
    seen: list[Detector] = []

    def judge(network: Detector) -> dict[str, float]:
        seen.append(network)
        return {"ap": 0.5}

    fit(
        Detector(small),
        data,
        replace(CONFIG, epochs=3),
        tmp_path,
        Running(judge=judge, judge_every=2),
    )
    assert len(seen) == 2 and not seen[1].training
    saved = weights(tmp_path / "weights.safetensors")
    assert all(torch.equal(saved[key], value) for key, value in seen[1].state_dict().items())
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [row["ap"] for row in rows] == ["", "0.5", "0.5"]


def test_memory_that_does_not_suffice(
    data: DetectionSet, small: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Detector.forward

    def scarce(self: Detector, images: torch.Tensor) -> object:
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, images)

    monkeypatch.setattr(Detector, "forward", scarce)
    config = replace(CONFIG, batch_size=8)
    for accumulate, takes in ((1, 4), (3, 12)):
        said = f"--batch-size 8: 2 fits, and with --accumulate {takes} takes"
        with pytest.raises(HeatError, match=said):
            fit(Detector(small), data, replace(config, accumulate=accumulate), tmp_path)


def test_more_processes_than_images_are_refused(
    data: DetectionSet, small: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "joined", lambda: contextlib.nullcontext(Group(0, 3)))
    with pytest.raises(UserError, match=r"^2 training images for 3 processes: .*node 2 at most$"):
        fit(Detector(small), data.of(data.records[:2]), replace(CONFIG, batch_size=6), tmp_path)


def test_a_state_that_cannot_be_read_is_not_called_broken(
    data: DetectionSet, small: Architecture, tmp_path: Path
) -> None:
    (tmp_path / "state.pt").mkdir()
    with pytest.raises(CheckpointError, match=r"^cannot read .*state.pt: "):
        fit(Detector(small), data, CONFIG, tmp_path)


def test_pictures_of_any_kind_train(small: Architecture, tmp_path: Path) -> None:
    """A very large one, one with thousands of boxes, one without any."""
    rng = np.random.default_rng(0)
    records = []
    for index, (size, boxes) in enumerate((((4000, 6000), 3), ((300, 400), 3000), ((40, 30), 0))):
        path = tmp_path / f"{index}.jpg"
        coarse = rng.integers(0, 255, (size[0] // 10, size[1] // 10, 3)).astype(np.uint8)
        cv2.imwrite(str(path), cv2.resize(coarse, size[::-1]))
        low = rng.uniform(0, 0.7, (boxes, 2))
        corners = np.hstack([low, low + 0.2]) * np.tile(size[::-1], 2)
        labels = rng.integers(0, 4, boxes)
        records.append(Record(index, path, *size, corners.astype(np.float32), labels))
    names = ("a", "b", "c", "d")
    data = DetectionSet(tmp_path, "train", tmp_path / "x", names, (0, 1, 2, 3), tuple(records))
    config = replace(CONFIG, epochs=1, augment=AugmentConfig(mosaic=0.5))
    for assign in ("uniform", "aligned"):
        done = fit(Detector(small), data, replace(config, assign=assign), tmp_path / assign)
        assert done.skipped_steps == 0


def test_recipes() -> None:
    assert recipe("small", epochs=30).plain_epochs == 10
    assert recipe("small", epochs=None, batch_size=4) == replace(RECIPES["small"], batch_size=4)
    assert RECIPES["3x"].schedule == "3x" and RECIPES["3x"].learning_rate == 1e-4
    with pytest.raises(UserError, match="--recipe long"):
        recipe("long")


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


def test_a_finished_run_stands(data: DetectionSet, small: Architecture, tmp_path: Path) -> None:
    fit(Detector(small), data, CONFIG, tmp_path)
    before = (tmp_path / "weights.safetensors").read_bytes()
    assert fit(Detector(small), data, CONFIG, tmp_path).finished_before
    assert (tmp_path / "weights.safetensors").read_bytes() == before
    with pytest.raises(CheckpointError, match="other settings"):
        fit(Detector(small), data, replace(CONFIG, seed=1), tmp_path, Running(resume=True))


def test_supernet_trains_and_keeps_its_logits(
    data: DetectionSet, small: Architecture, tmp_path: Path
) -> None:
    space = SearchSpace(template=small.with_(blocks=("R", "R", "R", "R")), positions=(1, 1, 1, 1))
    network = Supernet(space)
    shown = AugmentConfig(pasted=0.5, scale=(0.9, 1.1))
    result = fit(network, data, replace(CONFIG, epochs=3, augment=shown), tmp_path)
    again = Supernet(space)
    info = load_weights(result.checkpoint, again)
    assert augment_of(info) == shown
    assert info.kind == "supernet" and info.names == data.names
    assert again.logits() == network.logits()
    other = Supernet(space, SearchConfig(noise="uniform"))
    with pytest.raises(CheckpointError, match=r"\(search.noise uniform against gumbel\)"):
        fit(other, data, replace(CONFIG, epochs=3, augment=shown), tmp_path)
    assert any(value != 0 for r in network.logits().values() for value in r)


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


def test_steps_without_finite_loss_are_skipped(
    data: DetectionSet, small: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Detector.forward
    calls = iter(range(100))

    def sometimes(self: Detector, images: torch.Tensor) -> object:
        if next(calls) == 1:  # an overflow in the middle of the network
            for norm in self.units["stem"].modules():
                if isinstance(norm, torch.nn.BatchNorm2d):
                    norm(torch.full((2, norm.num_features, 2, 2), torch.nan))
            return tuple(torch.nan * maps for maps in real(self, images))
        return real(self, images)

    monkeypatch.setattr(Detector, "forward", sometimes)
    result = fit(Detector(small), data, replace(CONFIG, epochs=1), tmp_path)
    assert result.skipped_steps == 1
    saved = weights(result.checkpoint)
    assert all(bool(torch.isfinite(value).all()) for value in saved.values())


def test_endless_nan_stops_the_run(
    data: DetectionSet, small: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = task.training_loss
    monkeypatch.setattr(
        task, "training_loss", lambda *a: replace(real(*a), classes=torch.tensor(float("nan")))
    )
    monkeypatch.setattr(training, "MAX_BAD_STEPS", 2)
    with pytest.raises(HeatError, match="without a finite loss"):
        fit(Detector(small), data, CONFIG, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_image_is_named(
    data: DetectionSet, small: Architecture, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    records = (*data.records[:3], replace(data.records[3], path=broken))
    with pytest.raises(DataError, match=r"broken\.jpg"):
        fit(Detector(small), replace(data, records=records), CONFIG, tmp_path / "run")


def test_schedules() -> None:
    cosine = TrainConfig(epochs=10, warmup_steps=10)
    assert rate_factor(0, 100, cosine) == pytest.approx(0.1)
    assert rate_factor(10, 100, cosine) == 1.0
    assert rate_factor(99, 100, cosine) < 0.02
    steps = TrainConfig(schedule="1x")
    assert rate_factor(70, 120, steps) == 1.0
    assert rate_factor(80, 120, steps) == pytest.approx(0.1)
    assert rate_factor(119, 120, steps) == pytest.approx(0.01)
    for wrong in ({"epochs": 0}, {"batch_size": 0}, {"learning_rate": -1.0}, {"ema_decay": 1.0}):
        with pytest.raises(UserError):
            TrainConfig(**wrong)  # type: ignore[arg-type]


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


def test_a_full_disk_leaves_the_last_epoch_whole(
    data: DetectionSet, small: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second epoch cannot be written: one clear error, and the first stands."""
    real = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if "weights" in self.name and (tmp_path / "weights.safetensors").exists():
            raise OSError(28, "No space left on device")
        return real(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        fit(Detector(small), data, CONFIG, tmp_path)
    assert read_info(tmp_path / "weights.safetensors").epoch == 1
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["events.jsonl", "metrics.csv", "state.pt", "weights.safetensors"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(1.0, 0.5, 0.0), (0.8, 0.4, None), (0.6, 0.3, 0.02)], []),
        ([(1.0, 0.5, None), (1.0, 0.5, None), (1.0, 0.49, None)], ["the loss has not fallen"]),
        ([(1.0, 0.0, None), (0.5, 0.0, None), (0.3, 0.0, None)], ["no box was assigned"]),
        ([(1.0, 0.5, 0.0), (0.5, 0.3, 0.0), (0.3, 0.2, 0.0)], ["AP is 0.0000"]),
        ([(1.0, 0.5, 0.0), (1.0, 0.5, 0.0), (1.0, 0.5, 0.0)], ["the loss has", "AP is"]),
    ],
)
def test_a_training_that_does_not_learn_is_named(
    rows: list[tuple[float, float, float | None]], said: list[str]
) -> None:
    history = [
        {"classes": classes, "boxes": boxes} | ({} if ap is None else {"ap": ap})
        for classes, boxes, ap in rows
    ]
    found = signs(history, ("classes", "boxes"), planned_epochs=9)
    assert len(found) == len(said)
    assert all(text.startswith(start) for text, start in zip(found, said, strict=True))
    assert signs(history[:2], ("classes", "boxes"), 9) == []
    late = [*history[:-1], {**history[-1], "unlabelled_classes": 5.0}]
    terms = ("classes", "boxes", "unlabelled_classes")
    assert signs(late, terms, 9) == found, "a term that came later is no rise"
    assert signs([*history, history[-1]], ("classes", "boxes"), 9) == [], "said once"


def test_a_run_that_does_not_learn_says_so(shapes: Path, tmp_path: Path) -> None:
    """With a learning rate of next to nothing."""
    data = load_split(shapes, "train")
    network = Detector(UNIT.with_(num_classes=data.num_classes, input_size=(96, 128)))
    still = AugmentConfig(
        flip=0, scale=(1.0, 1.0), shift=0, shifted=0, brightness=0, contrast=0, saturation=0
    )
    config = TrainConfig(epochs=3, learning_rate=1e-12, ema_decay=0.0, augment=still)
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        fit(network, data, config, tmp_path / "run", Running(workers=0))
    assert "warning: after 3 epochs the loss has not fallen" in errors.getvalue()
    assert "not learning" in (tmp_path / "run" / "events.jsonl").read_text()
