"""Trainings that must end in time: fewer epochs, and a schedule that still comes to its end."""

import json
import math
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from heat.stages import build
from heat.stages.build_plan import SUPERNET_EPOCHS, TRAIN_EPOCHS, left_to_train, training_budgets
from heat.workspace import Workspace
from latency_tables.devices import Target
from supernet.checkpoint import read_info
from supernet.data.detection_set import DetectionSet
from supernet.errors import CheckpointError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.train import deadline
from supernet.train.deadline import Budget, Deadline
from supernet.train.loop import fit
from supernet.train.optimise import rate_factor
from supernet.train.recipes import Schedule as Planned
from supernet.train.recipes import TrainConfig, recipe
from supernet.train.running import Running, TrainResult
from supernet.train.schedule import Schedule
from supernet.train.stepper import Stepper
from tests.short_training import first_images

CONFIG = TrainConfig(epochs=10, batch_size=4, precision="f32", warmup_steps=2)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(deadline, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def data(shapes: Path) -> DetectionSet:
    return first_images(shapes, 4)


def test_a_schedule_that_is_not_cut_is_as_planned() -> None:
    schedule = Schedule.of(7)
    assert [schedule.step(step, 3) for step in range(21)] == list(range(21))
    assert [schedule.epoch(epoch) for epoch in range(7)] == list(range(7))
    config = TrainConfig(epochs=7, plain_epochs=2)
    assert schedule.config(config) == config and schedule.shortened_after == []


def test_a_schedule_is_continuous_and_comes_to_its_end() -> None:
    schedule = Schedule.of(10).shortened(4, 7)
    assert (schedule.epochs, schedule.planned, schedule.shortened_after) == (7, 10, [4])
    assert [schedule.at(epochs) for epochs in (0, 2, 4, 5.5, 7)] == [0, 2, 4, 7, 10]
    assert [schedule.epoch(epoch) for epoch in range(7)] == [0, 1, 2, 3, 5, 7, 9]
    again = schedule.shortened(5, 6)
    assert (again.epochs, again.planned, again.shortened_after) == (6, 10, [4, 5])
    assert [again.at(epochs) for epochs in (4, 5, 6)] == [4, 6, 10]
    assert Schedule.from_list(json.loads(json.dumps(again.to_list()))) == again


@pytest.mark.parametrize("planned", ["cosine", "flat-cosine", "1x", "detr"])
def test_the_learning_rate_does_not_jump_where_it_is_cut(planned: Planned) -> None:
    steps, config = 20, recipe("small", epochs=40, schedule=planned)
    schedule = Schedule.of(40).shortened(10, 20)
    rates = [
        rate_factor(schedule.step(step, steps), 40 * steps, config) for step in range(20 * steps)
    ]
    whole = [rate_factor(step, 40 * steps, config) for step in range(40 * steps)]
    assert rates[: 10 * steps] == pytest.approx(whole[: 10 * steps])
    assert rates[-1] == pytest.approx(whole[-1])
    if planned.endswith("cosine"):
        after = zip(rates[5 * steps :], rates[5 * steps + 1 :], strict=False)
        assert max(abs(b - a) for a, b in after) < (0.01 if planned == "cosine" else 0.01 / 0.3)


def test_a_run_that_began_with_the_cosine_ends_with_it(
    data: DetectionSet, smallest: Architecture, tmp_path: Path
) -> None:
    """flat-cosine is the recipe's since; what `heat build` had begun was refused."""
    fit(Detector(smallest), data, replace(CONFIG, epochs=1), tmp_path)
    later = replace(CONFIG, epochs=2, schedule="flat-cosine")
    fit(Detector(smallest), data, later, tmp_path, Running(resume=True))
    config = read_info(tmp_path / "weights.safetensors").facts["config"]
    assert config["schedule"] == "cosine" and config["epochs"] == 2  # type: ignore[index, call-overload]
    with pytest.raises(CheckpointError, match="schedule 1x against cosine"):
        fit(Detector(smallest), data, replace(later, schedule="1x"), tmp_path, Running(resume=True))


def test_mosaics_end_as_far_before_the_end() -> None:
    config = TrainConfig(epochs=30, plain_epochs=6)
    cut = Schedule.of(30).shortened(10, 20).config(config)
    assert (cut.epochs, cut.plain_epochs) == (20, 3)


def test_epochs_that_fit(clock: Clock) -> None:
    found = Deadline(Budget(100.0), steps_an_epoch=3)
    assert found.fitting(0, 10) == 10 and found.late_s(0, 10) == 0  # nothing is known yet
    for _ in range(2):
        found.start_epoch()
        for _ in range(3):
            clock.now += 3.0
            found.step()
        clock.now += 1.0  # files are written
    assert (clock.now, found.step_s, found.epoch_s) == (20.0, 3.0, 10.0)
    assert found.fitting(2, 10) == 10
    assert found.fitting(2, 11) == 10
    assert found.describe(2, 11, 10) == (
        "10 epochs instead of 11: 80 s are left, 9 epochs of 10.0 s do not fit (a step takes "
        "3.00 s)"
    )
    clock.now = 500.0
    assert found.fitting(2, 11) == 3  # one more in any case
    assert found.late_s(2, 3) == 410.0
    fewest = Deadline(Budget(0.0, fewest_epochs=8), steps_an_epoch=3)
    fewest.start_epoch()
    clock.now += 3.0
    fewest.step()
    assert (fewest.fitting(2, 11), fewest.fitting(9, 11), fewest.fitting(2, 7)) == (8, 10, 7)


def test_one_slow_step_does_not_count(clock: Clock) -> None:
    found = Deadline(Budget(100.0), steps_an_epoch=5)
    found.start_epoch()
    for seconds in (1.0, 1.0, 60.0, 1.0, 1.0):
        clock.now += seconds
        found.step()
    assert found.step_s == 1.0


def train(
    smallest: Architecture,
    data: DetectionSet,
    folder: Path,
    running: Running,
    stop: int | None = None,
) -> TrainResult:
    """Train; `stop` interrupts after so many epochs."""

    def interrupt(epoch: int, _: dict[str, float]) -> None:
        if epoch == stop:
            raise InterruptedError

    torch.manual_seed(1)
    return fit(Detector(smallest), data, CONFIG, folder, running, on_epoch=interrupt)


@pytest.fixture
def step_takes(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Seconds that steps take on the fake clock, by their number in the test; else 10."""
    seconds: dict[int, float] = {}
    real = Stepper.step
    numbers = count()

    def timed(self: Stepper, parts: Any) -> dict[str, float] | None:
        clock.now += seconds.get(next(numbers), 10.0)
        return real(self, parts)

    monkeypatch.setattr(Stepper, "step", timed)
    return seconds


@pytest.mark.usefixtures("step_takes")
def test_slow_steps_shorten_a_training(
    data: DetectionSet, smallest: Architecture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 55 seconds 45 are left after an epoch of 10: four more instead of nine."""
    done = train(smallest, data, tmp_path, Running(budget=Budget(55.0)))
    assert (done.epochs, done.planned_epochs, done.shortened_after) == (5, 10, [1])
    assert done.facts()["shortened_after"] == [1] and not done.stopped_early
    line = "training: 5 epochs instead of 10: 45 s are left, 9 epochs of 10.0 s do not fit"
    assert capsys.readouterr().err.count(line) == 1
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    (cut,) = [event for event in events if event["event"] == "shortened"]
    assert (cut["epoch"], cut["epochs"], cut["before"], cut["step_s"]) == (1, 5, 10, 10.0)
    info = read_info(tmp_path / "weights.safetensors")
    assert (info.epoch, info.epochs, info.finished) == (5, 5, True)
    rates = [row["learning_rate"] for row in info.facts["history"]]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.05 * CONFIG.learning_rate
    assert train(smallest, data, tmp_path, Running()).finished_before  # the plan of 10 epochs


def test_steps_that_become_slower_later(
    data: DetectionSet, smallest: Architecture, tmp_path: Path, step_takes: dict[int, float]
) -> None:
    """All ten fit at first; from the fourth epoch on a step takes five times as long."""
    step_takes.update({number: 50.0 for number in range(3, 10)})
    done = train(smallest, data, tmp_path, Running(budget=Budget(210.0)))
    # After 6 epochs 180 s are spent, and the median of the steps is 30 s: one more is trained.
    assert (done.epochs, done.shortened_after) == (7, [6])


@pytest.mark.usefixtures("step_takes")
def test_a_resumed_training_keeps_the_shortened_schedule(
    data: DetectionSet, smallest: Architecture, tmp_path: Path
) -> None:
    """Bit for bit, though all ten epochs would fit when it is resumed."""
    budget = Budget(55.0)
    train(smallest, data, tmp_path / "whole", Running(budget=budget))
    with pytest.raises(InterruptedError):
        train(smallest, data, tmp_path / "cut", Running(budget=budget), stop=3)
    with pytest.raises(CheckpointError, match="epoch 3 of 5: --resume goes on"):
        train(smallest, data, tmp_path / "cut", Running())
    done = train(smallest, data, tmp_path / "cut", Running(resume=True, budget=Budget(math.inf)))
    assert (done.epochs, done.shortened_after) == (5, [1])
    whole, cut = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


@pytest.mark.usefixtures("step_takes")
def test_the_fewest_epochs_are_trained_and_reported_once(
    data: DetectionSet, smallest: Architecture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = train(smallest, data, tmp_path, Running(budget=Budget(30.0, fewest_epochs=10)))
    assert (done.epochs, done.shortened_after) == (10, [])
    said = capsys.readouterr().err
    line = "training: keeps 10 epochs, the fewest: 20 s are left, 9 epochs of 10.0 s do not fit"
    assert said.count(line) == said.count("the fewest") == 1 and "it ends 70 s late" in said


def test_nothing_is_shortened_where_all_fits(
    data: DetectionSet, smallest: Architecture, tmp_path: Path, step_takes: dict[int, float]
) -> None:
    done = train(smallest, data, tmp_path / "a", Running(budget=Budget(100.0)))
    assert (done.epochs, done.shortened_after) == (10, [])
    train(smallest, data, tmp_path / "b", Running())
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in "ab")
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_what_is_left_to_train() -> None:
    assert left_to_train(10, 0) == pytest.approx(570) and left_to_train(10, 9999) == 0.0


def test_a_build_gives_its_trainings_a_deadline(
    data: DetectionSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supernet its share, the final training all that is left."""
    given: list[Budget | None] = []

    class EndError(Exception):
        pass

    def keep(*_: Any, running: Running, **__: Any) -> None:
        given.append(running.budget)
        if len(given) == 2:
            raise EndError

    def thin(workspace: Workspace, forms: Any, **_: Any) -> None:
        workspace.architecture.parent.mkdir(parents=True)
        workspace.architecture.write_text(forms[0].space.template.to_json())

    for name in ("refuse_impossible", "profile"):
        monkeypatch.setattr(build, name, lambda *_: None)
    monkeypatch.setattr(build, "step_seconds", lambda *_: 0.1)
    monkeypatch.setattr(build, "train_supernet", keep)
    monkeypatch.setattr(build, "train", keep)
    monkeypatch.setattr(build, "thin", thin)
    target: Target = SimpleNamespace(  # type: ignore[assignment]
        name="x",
        runtime="onnxruntime",
        threads=1,
        precision="f32",
        device=SimpleNamespace(kind="cpu"),
    )
    with pytest.raises(EndError):
        build.build(
            Workspace(tmp_path),
            target,
            10.0,
            data,
            data,
            minutes=4.0,
            format="onnx",
            space="micro",
            input_size=(64, 96),
            output_stride=32,
            head="nms",
            boxes="deltas",
            distil=False,
            calibrate=True,
            seed=0,
        )
    supernet, final = given
    assert supernet is not None and final is not None
    assert supernet.seconds == pytest.approx(training_budgets(4.0, 0.0)[0], abs=5.0)
    assert final.seconds == pytest.approx(left_to_train(4.0, 0.0), abs=10.0)
    assert (supernet.fewest_epochs, final.fewest_epochs) == (SUPERNET_EPOCHS[0], TRAIN_EPOCHS[0])
