"""What cannot be done is refused in one line, and before any work."""

import math
from pathlib import Path

import pytest

from deploy.edge import detect
from deploy.form import Form
from heat import cli
from supernet.detr.family import DetrArchitecture
from supernet.errors import UserError
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.supernet import SearchConfig
from tests.command_line import fails


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
    monkeypatch.setattr(detect, "Bundle", fail)
    assert detect.main(["x.jpg"]) == 2
    assert capsys.readouterr().err == f"error: {line}\n"


def test_a_seed_is_refused_before_a_build_begins(shapes: Path, tmp_path: Path) -> None:
    """The table was measured first."""
    command = ["build", "--data", shapes, "--target-fps", 5, "--seed", -1]
    assert "--seed -1: a whole number" in fails(2, *command, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_is_not_the_default(network: Detector) -> None:
    """An option of 0 was taken for one that is not given."""
    with pytest.raises(UserError, match="windows of 0 tokens: at least 1"):
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
