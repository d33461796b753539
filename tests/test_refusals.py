"""What cannot be done is refused in one line, and before any work."""

import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_type_hints

import pytest

import heat
from deploy.edge import ladder, script
from deploy.edge.runtimes import check_threads
from deploy.edge.score_limits import check_score
from deploy.edge.sources import image_paths
from deploy.form import Form
from deploy.teachers.asked import Asked
from heat import cli
from heat.commands import training
from heat.commands.api import _bound, checked
from heat.commands.asked_network import ending_of
from heat.commands.find import find_space
from heat.commands.fleet_file import find_members, read_fleet
from heat.spaces import search_space
from heat.thinning import candidates
from heat.thinning.candidates import Candidate
from heat.thinning.ceiling import refuse_impossible
from heat.thinning.limits import Limits
from heat.workspace import Workspace
from latency_tables.devices import resolve
from supernet.checkpoint import read_state_dict
from supernet.detr.family import DetrArchitecture
from supernet.errors import CheckpointError, DataError, UserError
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.supernet import SearchConfig, SearchSpace
from supernet.train.running import Running, most_workers
from tests.command_line import SMALL, fails


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(28, "No space left on device", "a.mp4"), "a.mp4: No space left on device"),
        (OSError(18, "Cross-device link", "a", None, "b"), "a to b: Cross-device link"),
        (OSError("cannot identify image file"), "cannot identify image file"),
        (OSError(), "OSError"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    error: OSError,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It was `error: : No space left on device`; in a bundle's program, a traceback."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    assert fails(2, "devices") == f"error: {line}"
    monkeypatch.setattr(ladder, "Bundle", fail)
    assert script.main(["x.jpg"]) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_a_seed_is_refused_before_a_build_begins(shapes: Path, tmp_path: Path) -> None:
    """The table was measured first."""
    command = ["build", "--data", shapes, "--target-fps", 5, "--seed", -1]
    assert "--seed -1: a whole number" in fails(2, *command, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_is_not_the_default(network: Detector) -> None:
    """An option of 0 was taken for one that is not given."""
    with pytest.raises(UserError, match="window 0: a whole number from 1"):
        DetrArchitecture(attention="enact", window=0).cores()
    with pytest.raises(UserError, match="--opset 0: 17 to"):
        Form(opset=0).graph(network, None)


@pytest.mark.parametrize("rate", [-1.0, math.nan, math.inf])
def test_steps_of_the_logits_that_train_nothing(rate: float) -> None:
    with pytest.raises(UserError, match=f"--logit-learning-rate {rate}"):
        SearchConfig(logit_learning_rate=rate)


def test_fewer_than_no_entries_are_refused(tmp_path: Path) -> None:
    asked = ["--device", "cpu-i7", "--estimate", "--few-shot", -1, "--out", tmp_path]
    assert "--few-shot -1: 0 or more" in fails(2, "profile", *asked)


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--data", "d", "--epochs", "1.5"],
        ["export", "--rounds", "1.5"],
        ["profile", "--threads", "1.5"],
        ["detect", "b", "x.jpg", "--frames", "1.5"],
        ["data", "shapes", "d", "--seed", "1.5"],
    ],
)
def test_a_fraction_is_no_whole_number(command: list[str]) -> None:
    """It was rounded."""
    assert "a whole number is needed, not 1.5" in fails(2, *command)


def test_processes_have_an_upper_limit() -> None:
    assert Running(workers=most_workers()).workers == most_workers() >= 32
    with pytest.raises(UserError, match=f"--workers 100000: at most {most_workers()}"):
        Running(workers=100_000)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["profile", "--show", "/tmp/x"], "no table of /tmp/x"),
        (["profile", "--show", "**"], "no table of **"),
        (["export", "--ladder", "60,nan", "--data", "x"], "--ladder 60,nan: frame rates"),
        (["detect", "b", "a.png", "--save", "s", "--json", "s/a.png"], "--json s/a.png: what is"),
        (["detect", "b", "a.png", "--json", "detections/labels.json"], "saved under such names"),
    ],
)
def test_what_would_be_lost_or_is_no_name_is_refused(
    command: list[str], message: str, tmp_path: Path
) -> None:
    more = ["--out", str(tmp_path)] if command[0] != "detect" else []
    assert message in fails(2, *command, *more)


def test_a_device_is_no_image() -> None:
    """Reading it never ended, and took all memory."""
    with pytest.raises(DataError, match="/dev/zero is a device"):
        image_paths(Path("/dev/zero"))


def test_a_number_is_one_of_the_words_that_it_may_be() -> None:
    """`heat.build(output_stride=16)` was refused: `did you mean 16?`."""
    hint = Literal["8", "16", "32"]
    assert checked("output_stride", 16, hint) == "16" == checked("output_stride", "16", hint)
    with pytest.raises(UserError, match="output_stride=12"):
        checked("output_stride", 12, hint)


def test_a_named_space_goes_on_with_what_it_was_trained_as(tmp_path: Path) -> None:
    """`heat thin --space micro` forgot input size, stride and head of the supernet of that name."""
    workspace = Workspace(tmp_path)
    own = search_space("micro", input_size=(96, 128), num_classes=3, output_stride=16, head="voted")
    own = replace(own, template=own.template.with_(boxes="distributions"))
    workspace.record("supernet", {"space": own.to_dict()})

    def found(name: str | None, size: str | None = None) -> SearchSpace:
        return find_space(workspace, name, size, None, stages=("supernet",))

    assert found("micro") == found(None) == own
    assert found("micro", "64x64").template == own.template.with_(input_size=(64, 64))
    assert found("mini").template.input_size == (448, 448)


def test_a_fleet_goes_on_with_the_head_that_it_began_with(tmp_path: Path) -> None:
    workspace, stages = Workspace(tmp_path), ["supernet", "supernet-plan"]
    assert ending_of(workspace, stages, None, None) == ("voted", "distributions")
    own = search_space("micro", input_size=(96, 128), num_classes=3, head="nms")
    workspace.record("supernet-plan", {"epochs": 3, "space": own.to_dict()})
    assert ending_of(workspace, stages, None, None) == ("nms", "deltas")
    assert ending_of(workspace, stages, "voted", None) == ("voted", "deltas")


def test_options_of_a_teacher_are_given_by_name() -> None:
    hints = get_type_hints(training.train)
    bound = _bound(
        training.train, hints, (), {"data": Path("x"), "teacher": "b", "teacher_size": "9x9"}
    )
    assert bound.arguments["teacher"] == Asked(teacher=Path("b"), teacher_size="9x9")
    with pytest.raises(UserError, match=r"epoch \(did you mean epochs\?\): no option of train"):
        heat.train(data="x", epoch=3)  # type: ignore[call-arg]
    with pytest.raises(UserError, match="missing a required argument"):
        heat.build(data="x")  # type: ignore[call-arg]


def test_values_of_another_type_are_refused() -> None:
    for threads in ("1", 1.5):
        with pytest.raises(UserError, match=f"threads {threads!r}: a whole number"):
            check_threads(threads)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"score '0\.5': a number from 0 to 1"):
        check_score("0.5")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"heat\.load\(None\): the folder of a bundle"):
        heat.load(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"text", b"<html>", b"PK\x03\x04zip", pickle.dumps(Path("x"))])
def test_what_is_no_checkpoint_is_not_recommended_to_be_executed(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="a file of tensors") as raised:
        read_state_dict(tmp_path / "x.pth")
    assert "weights_only" not in str(raised.value) and "\n" not in str(raised.value)


def test_a_fleet_names_its_file_and_network(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text('[camera]\ndevice = "cpu"\ntarget_fps = 1', encoding="utf-8-sig")
    assert set(read_fleet(path)) == {"camera"}
    for line in ('device = "toaster"', "threads = -1", "threads = 99999"):
        path.write_text(f"[camera]\ntarget_fps = 1\n{line}")
        with pytest.raises(UserError, match=r"fleet\.toml \[camera\]: "):
            find_members(Workspace(tmp_path / "run"), path, space="micro", data=None)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ('device = "cpu"\nthreads = 1\ntarget_fps = 1e9', "--target-fps 1e+09: no machine is so"),
        # The table that HEAT ships is of 80 classes.
        ('device = "v100"\ntarget_fps = 24\ntrust_table = true', "the table v100-tensorrt-f16-t1"),
        (
            'runtime = "torch"\nthreads = 1\ntarget_fps = 1',
            "runtime = 'torch': no bundle",
        ),
    ],
)
def test_a_fleet_is_refused_before_it_is_trained(
    shapes: Path, tmp_path: Path, member: str, message: str
) -> None:
    path, out = tmp_path / "fleet.toml", tmp_path / "run"
    path.write_text(f"[far]\n{member}\n")
    line = fails(2, "fleet", path, "--data", shapes, "--space", "micro", "--out", out)
    assert f"fleet.toml [far]: {message}" in line
    assert not (out / "supernet").exists()


@pytest.mark.parametrize("device", ["cpu:openvino:f99", "cpu:abacus"])
def test_a_device_is_refused_before_its_table_is_locked(tmp_path: Path, device: str) -> None:
    command = ["thin", "--target-fps", 1, "--device", device, "--space", "micro"]
    assert "is none of" in fails(2, *command, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_notes_are_no_table(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    line = fails(2, "profile", "--compare", tmp_path / "notes.txt", tmp_path / "notes.txt")
    assert "notes.txt is no latency table" in line


def test_a_build_ends(shapes: Path, tmp_path: Path) -> None:
    command = ["build", "--data", shapes, "--target-fps", 5, "--minutes", "inf"]
    assert "--minutes inf: a positive number" in fails(2, *command, "--out", tmp_path / "run")


@pytest.mark.parametrize(("limit", "mb"), [("max_memory_mb", 0.001), ("max_size_mb", 1e-9)])
def test_no_network_is_so_small(limit: str, mb: float) -> None:
    space = search_space("micro", input_size=(96, 128), num_classes=2)
    targets = (resolve("cpu", threads=1),)
    wanted = Candidate(space, targets, (Limits(target_fps=1, **{limit: mb}),))
    with pytest.raises(UserError, match=f"--{limit.replace('_', '-')} {mb:g}: the smallest"):
        refuse_impossible([wanted])
    fits = Limits(target_fps=1, **{limit: 500.0})
    refuse_impossible([Candidate(space, targets, (fits,))])


def test_a_memory_that_is_not_measured_has_no_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's memory was never compared with the limit: every network passed."""
    monkeypatch.setattr(candidates, "measure_table", lambda *_: pytest.fail("it was measured"))
    limits = ["--target-fps", 1, "--max-memory-mb", 500, "--runtime", "torch"]
    line = fails(2, "thin", *limits, *SMALL, "--out", tmp_path)
    assert "has no memory model: leave --max-memory-mb out" in line
