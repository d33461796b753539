"""What a command line asks for arrives where the work is done."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from heat.thinning.thinned import need_thinned
from heat.workspace import Workspace
from tests.command_line import run
from tests.workspaces import SMALL_SPACE


def test_the_options_of_a_training(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: dict[str, Any] = {}

    def train(workspace: object, data: object, chosen: Any, config: Any, **more: Any) -> object:
        got.update(chosen=chosen, config=config, **more)
        return {}

    monkeypatch.setattr("heat.stages.train.train", train)
    asked: Mapping[str, object] = {
        "epochs": 7, "batch_size": 3, "accumulate": 2, "learning_rate": 0.25, "schedule": "3x",
        "drop_path": 0.125, "assign": "aligned", "precision": "f32", "seed": 11,
    }  # fmt: skip
    words = [str(w) for k, v in asked.items() for w in (f"--{k.replace('_', '-')}", v)]
    code, _, errors = run(
        "train", "--data", shapes, "--architecture", "pico", "--input-size", "64x96", *words,
        "--balanced", "--head", "one-to-one", "--output-stride", 16, "--compile", "--tensorboard",
        "--eval-every", 4, "--patience", 5, "--workers", 0,
    )  # fmt: skip
    assert code == 0, errors
    assert {key: getattr(got["config"], key) for key in asked} == asked
    assert got["config"].balanced
    network, running = got["chosen"], got["running"]
    assert (network.input_size, network.head, network.output_stride) == ((64, 96), "one-to-one", 16)
    assert running.compile and running.tensorboard and running.workers == 0
    assert (running.judge_every, running.patience) == (4, 5)


def test_a_device_with_its_runtime_and_precision(tmp_path: Path) -> None:
    device = "cpu-i7:openvino:f32"
    out = ["--out", tmp_path]
    how = ["--device", "cpu-i7", "--runtime", "openvino", "--precision", "f32"]
    assert run("profile", "--estimate", *SMALL_SPACE, *how, *out)[0] == 0
    code, _, errors = run(
        "thin", "--target-fps", 30, "--trust-table", "--ap-drop", "mass", "--device", device, *out
    )
    assert code == 0, errors
    found = need_thinned(Workspace(tmp_path))
    assert (found.requested, found.runtime, found.precision) == ("cpu-i7", "openvino", "f32")


def test_the_other_members_of_a_fleet_go_on_where_one_misses(tmp_path: Path) -> None:
    fleet = tmp_path / "fleet.toml"
    member = '[{}]\ndevice = "cpu-i7"\ntarget_fps = {}\ntrust_table = true\n'
    targets = {"first": 30, "impossible": 9_000, "last": 40}
    fleet.write_text("".join(member.format(*item) for item in targets.items()))
    out = ["--out", tmp_path]
    estimate = ["profile", "--estimate", "--device", "cpu-i7", *SMALL_SPACE, *out]
    assert run(*estimate)[0] == 0
    code, _, errors = run("thin", "--targets", fleet, "--ap-drop", "mass", *out)
    assert code == 3 and "impossible" in errors
    for name in ("first", "last"):
        found = need_thinned(Workspace(tmp_path).member(name))
        assert found.met and found.target_fps == targets[name]
