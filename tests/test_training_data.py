"""Training on the data that was asked for: its content, its classes, one run in a folder."""

import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from heat.commands.data import shapes as shapes_command
from heat.stages.network import Which, load_network
from heat.thinning.evaluation import BATCH, load_batches
from heat.workspace import Workspace
from latency_tables.probe.lock import lock_file, only_one
from supernet.checkpoint import read_info
from supernet.data.coco import load_split
from supernet.data.detection_set import DetectionSet
from supernet.errors import CheckpointError, DataError, UserError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.train.early_stop import best_epoch
from supernet.train.fingerprint import Fingerprint, differences
from supernet.train.loop import fit
from supernet.train.pretraining import load_image_folders
from supernet.train.recipes import TrainConfig
from supernet.train.run_files import RunFiles
from supernet.train.running import Running
from supernet.train.stepper import Stepper
from tests.short_training import first_images

from .command_line import fails, run
from .test_splits import TINY, pair

CONFIG = TrainConfig(epochs=1, batch_size=4, precision="f32", warmup_steps=2)


@pytest.fixture
def data(shapes: Path) -> DetectionSet:
    return first_images(shapes, 6)


def test_corrected_labels_are_another_run(
    data: DetectionSet, smallest: Architecture, tmp_path: Path
) -> None:
    """Of equal image count and class names, the old result was returned."""
    fit(Detector(smallest), data, CONFIG, tmp_path)
    first = data.records[0]
    moved = replace(first, boxes_xyxy=first.boxes_xyxy + np.float32(1))
    corrected = replace(data, records=(moved, *data.records[1:]))
    for resume in (False, True):
        with pytest.raises(CheckpointError, match=r"\(other images or annotations\): --restart"):
            fit(Detector(smallest), corrected, CONFIG, tmp_path, Running(resume=resume))
    done = fit(Detector(smallest), corrected, CONFIG, tmp_path, Running(restart=True))
    assert not done.finished_before
    with pytest.raises(CheckpointError, match=r"\(seed 3 against 0\)"):
        fit(Detector(smallest), corrected, replace(CONFIG, seed=3), tmp_path)


def test_a_state_without_a_record_of_its_data(
    data: DetectionSet, smallest: Architecture, tmp_path: Path
) -> None:
    fit(Detector(smallest), data, CONFIG, tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    del state["fingerprint"]["data"]
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="did not record what it was trained on"):
        fit(Detector(smallest), data, CONFIG, tmp_path, Running(resume=True))


def test_a_state_of_before_a_setting_was_made_has_its_default(
    data: DetectionSet, smallest: Architecture, tmp_path: Path
) -> None:
    fit(Detector(smallest), data, CONFIG, tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for setting in ("optimizer", "vector_rate"):
        del state["fingerprint"]["config"][setting]
    torch.save(state, tmp_path / "state.pt")
    assert fit(Detector(smallest), data, CONFIG, tmp_path, Running(resume=True)).finished_before
    with pytest.raises(CheckpointError, match=r"\(vector_rate 5\.0 against 1\.0\)"):
        fit(Detector(smallest), data, replace(CONFIG, vector_rate=5.0), tmp_path)


def test_a_restart_that_was_killed_does_not_resume_what_it_replaced(
    data: DetectionSet, smallest: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(Detector(smallest), data, CONFIG, tmp_path)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("supernet.train.loop.train_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(Detector(smallest), data, CONFIG, tmp_path, Running(restart=True))
    assert not fit(Detector(smallest), data, CONFIG, tmp_path, Running(resume=True)).finished_before


def test_means_are_over_the_steps_that_counted(
    data: DetectionSet, smallest: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of three steps was skipped: the others' mean is not lowered by it."""
    steps = iter([{"classes": 2.0}, None, {"classes": 4.0}])
    monkeypatch.setattr(Stepper, "step", lambda self, parts: next(steps))
    means: list[dict[str, float]] = []
    config = replace(CONFIG, batch_size=2)
    fit(Detector(smallest), data, config, tmp_path, on_epoch=lambda _, found: means.append(found))
    assert means == [{"classes": 3.0}]


def test_tensorboard_is_closed(
    data: DetectionSet, smallest: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    class Board:
        def add_scalar(self, *_: object) -> None: ...
        def close(self) -> None:
            closed.append("closed")

    monkeypatch.setattr("supernet.train.run_files._board", lambda _: Board())
    fit(Detector(smallest), data, CONFIG, tmp_path, Running(tensorboard=True))
    with pytest.raises(CheckpointError):
        fit(Detector(smallest), data, replace(CONFIG, seed=1), tmp_path, Running(tensorboard=True))

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("supernet.train.loop.train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(Detector(smallest), data, CONFIG, tmp_path, Running(tensorboard=True, restart=True))
    assert closed == ["closed"] * 3


def test_a_set_without_boxes_is_refused(
    data: DetectionSet, smallest: Architecture, tmp_path: Path
) -> None:
    bare = [
        replace(r, boxes_xyxy=np.zeros((0, 4), np.float32), labels=np.zeros(0, np.int64))
        for r in data.records
    ]
    with pytest.raises(DataError, match="no box to train on"):
        fit(Detector(smallest), data.of(bare), CONFIG, tmp_path)


def test_nine_images_in_eights(data: DetectionSet, shapes: Path) -> None:
    """The last batch is not one image: BatchNorm cannot be recalibrated on it."""
    records = load_split(shapes, "train").records[: BATCH + 1]
    assert [len(images) for images, _ in load_batches(records, (64, 64))] == [BATCH + 1]


def test_one_training_in_a_folder(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\n"
        "from latency_tables.probe.lock import only_one\n"
        "with only_one(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    message = rf"process {other.pid} \(python {tmp_path}, since .*\) is training in it: wait"
    with pytest.raises(UserError, match=message), only_one(tmp_path, "training in it"):
        pass
    other.kill()
    other.wait()
    other.stdout.close()
    with only_one(tmp_path):
        assert json.loads(lock_file(tmp_path).read_text())["process"] == os.getpid()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "-1"], "--seed -1: a whole number from 0"),
        (["--workers", "-1"], "--workers -1: 0 or more"),
        (["--drop-path", "2"], "--drop-path 2.0: a rate of 0 <= rate < 1"),
        (["--eval-every", "-1"], "--eval-every -1: epochs, or 0"),
        (["--learning-rate", "inf"], "--learning-rate inf"),
    ],
)
def test_senseless_options(shapes: Path, tmp_path: Path, options: list[str], message: str) -> None:
    command = ("train", "--data", shapes, *TINY, "--out", tmp_path / "run", *options)
    assert message in fails(2, *command)
    assert not (tmp_path / "run").exists()


def test_a_seed_of_shapes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--seed -1: 0 or more"):
        shapes_command(tmp_path / "x", seed=-1)


def test_adopting_keeps_what_was_trained(tmp_path: Path) -> None:
    root = pair(tmp_path / "a", None)
    assert run("train", "--data", root, *TINY, "--out", tmp_path / "run")[0] == 0
    weights = tmp_path / "run" / "train" / "weights.safetensors"
    before = weights.read_bytes()
    file = tmp_path / "x.pth"
    file.write_bytes(b"")
    line = fails(2, "adopt", file, "--out", tmp_path / "run")
    assert "holds a trained network: --restart replaces it" in line
    assert weights.read_bytes() == before
    line = fails(2, "adopt", file, "--out", tmp_path / "run", "--restart")
    assert "x.pth is no checkpoint of weights alone" in line
    assert weights.read_bytes() == before


def test_classified_images_have_a_digest(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/3.png"):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))
    before = load_image_folders(tmp_path, "train").digest
    (tmp_path / "train" / "a" / "2.png").rename(tmp_path / "train" / "b" / "2.png")
    assert load_image_folders(tmp_path, "train").digest != before


def test_two_trainings_in_one_workspace(tmp_path: Path) -> None:
    root = pair(tmp_path / "a", None)
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with only_one(tmp_path / "run" / "train", "training in run"):
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    line = fails(2, "train", "--data", root, *TINY, "--out", tmp_path / "run")
    done.set()
    thread.join()
    assert re.search(
        rf"process {os.getpid()} \(.*, since .*\) is training in /.*run/train: wait", line
    )
    assert not (tmp_path / "run" / "train" / "events.jsonl").exists()


def test_the_best_epoch_is_kept_beside_the_last(
    data: DetectionSet, smallest: Architecture, tmp_path: Path
) -> None:
    """The second of three epochs has the highest AP; a restart begins without it."""
    aps = iter([0.1, 0.3, 0.2])
    config = replace(CONFIG, epochs=3)
    running = Running(judge=lambda _: {"ap": next(aps)}, judge_every=1)
    workspace = Workspace(tmp_path)
    fit(Detector(smallest), data, config, workspace.train, running)
    epochs: dict[Which | None, int] = {"best": 2, "trained": 3, None: 3}
    for which, epoch in epochs.items():
        found = load_network(workspace, which=which)
        assert found.training is not None and found.training["epoch"] == epoch
    fit(Detector(smallest), data, config, workspace.train, Running(restart=True))
    with pytest.raises(UserError, match=r"no .*best.safetensors: heat train --eval-every"):
        load_network(workspace, which="best")


def test_the_state_of_an_epoch_is_written_last(
    data: DetectionSet, smallest: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed after it was finished, but without its curves, stayed without them."""

    def killed(self: RunFiles) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunFiles, "save_state", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(Detector(smallest), data, CONFIG, tmp_path)
    assert read_info(tmp_path / "weights.safetensors").epoch == 1
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 2
    assert '"epoch"' in (tmp_path / "events.jsonl").read_text()


def test_a_record_of_an_older_training_is_not_taken_for_this_one(
    data: DetectionSet, smallest: Architecture, tmp_path: Path
) -> None:
    """A training that is killed before it is recorded leaves the record of the one before."""
    first = fit(Detector(smallest), data, CONFIG, tmp_path)
    again = fit(Detector(smallest), data, CONFIG, tmp_path)
    assert again.is_recorded(dict(first.facts())) and not first.is_recorded(None)
    longer = fit(
        Detector(smallest), data, replace(CONFIG, epochs=2), tmp_path, Running(resume=True)
    )
    ended = fit(Detector(smallest), data, replace(CONFIG, epochs=2), tmp_path)
    assert ended.is_recorded(dict(longer.facts())) and not ended.is_recorded(dict(first.facts()))
    assert ended.images_per_second > 0


def test_no_epoch_is_best_where_none_has_an_ap() -> None:
    assert best_epoch([{"epoch": 1}, {"epoch": 2, "ap": -1.0}]) is None
    assert best_epoch([{"epoch": 1, "ap": 0.2}, {"epoch": 2, "ap": 0.2}]) == 1


def test_what_differs_of_a_run_is_named_with_both_values() -> None:
    run: Fingerprint = {
        "config": {"seed": 0, "augment": {"mosaic": 0.5, "scale": [0.5, 1.5]}, "assign": None},
        "names": ["a"], "images": 3, "data": "1", "what": "x", "start": {},
    }  # fmt: skip
    assert differences(run, run) == ""
    config = {"seed": 1, "augment": {"mosaic": 1.0, "scale": [0.5, 1.5]}, "assign": {"topk": 9}}
    other: Fingerprint = {**run, "config": config, "names": ["b"], "start": {"networks": "2"}}
    assert differences(run, other) == (
        "seed 0 against 1, augment.mosaic 0.5 against 1.0, assign none against others, "
        "other classes, other networks trained together"
    )
    many: Fingerprint = {**run, "config": {name: 1 for name in "abcde"}}
    assert differences(many, {**run, "config": {}}) == (
        "a 1 against none, b 1 against none, c 1 against none, 2 more settings"
    )
