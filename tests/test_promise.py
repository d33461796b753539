"""What a bundle is held against: the target, the prediction, and the other limits of thinning."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.edge.bench import Speed
from deploy.form import Form
from heat.stages.promise import Promise, broken_promises, promise_of
from heat.thinning.again import part_of
from heat.thinning.thinned import Thinned
from heat.workspace import Workspace
from latency_tables.devices import Target, resolve
from latency_tables.store import conditions_of
from latency_tables.table import LatencyTable, Row
from latency_tables.table_file import write_table
from supernet.heatdetr.architecture import Architecture
from tests.workspaces import record


def broken(
    monkeypatch: pytest.MonkeyPatch, promise: Promise, model: Path, unit: Architecture, speed: Speed
) -> str:
    """Return what a promise says of a bundle of this speed."""
    monkeypatch.setattr("heat.stages.promise.measure_bundle", lambda *_: speed)
    promise.measure(model, unit, resolve("cpu", threads=1).setting)
    return promise.broken


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file of 1.5 MiB."""
    path = tmp_path / "model.onnx"
    path.write_bytes(bytes(3 * 2**19))
    return path


@pytest.mark.parametrize(
    "limit, said",
    [
        ({"target_fps": 25.5}, "25.00 FPS measured, target 25.5"),
        ({"max_latency_ms": 40.0, "percentile": "p50"}, ""),
        ({"max_latency_ms": 40.0, "percentile": "p95"}, "measured: p95 50.00 ms, at most 40"),
        ({"max_size_mb": 1.6}, ""),
        ({"max_size_mb": 1.4}, "measured: size 1.5 MiB, at most 1.4"),
        ({"max_memory_mb": 99.0}, "measured: memory 100.0 MiB, at most 99"),
        ({"max_memory_mb": 101.0}, ""),
    ],
)
def test_each_limit_is_compared(
    limit: dict[str, Any], said: str, model: Path, unit: Architecture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("heat.stages.promise.peak_mb", lambda *_: 100.0)
    speed = Speed(ms=40.0, p50_ms=32.0, p95_ms=40.0)  # sustained, and as it was
    found = broken(monkeypatch, Promise(record(**limit)), model, unit, speed)
    assert found == (f"{said}: run heat thin again" if said else "")


@pytest.fixture
def place(tmp_path: Path, unit: Architecture) -> tuple[Workspace, Target, Thinned]:
    """A network that was thinned here, with a table of this machine."""
    workspace, target = Workspace(tmp_path), resolve("cpu", threads=1)
    workspace.architecture.parent.mkdir(parents=True)
    unit.save(workspace.architecture)
    row = Row(0.5, 0.0, 3, 5.0, "2026-01-01", "0.1.0")
    conditions = conditions_of(target, unit.input_size)
    table = LatencyTable(conditions, dict.fromkeys(unit.entries().values(), row))
    thinned = record(
        widths=unit.widths, blocks=unit.blocks, global_block=unit.global_block,
        model=target.detected.model, table=str(write_table(table, workspace.tables)),
    )  # fmt: skip
    return workspace, target, thinned


def test_what_runs_as_it_was_thinned_is_compared_with_both(
    place: tuple[Workspace, Target, Thinned], unit: Architecture
) -> None:
    workspace, target, thinned = place
    found = promise_of(workspace, thinned, unit, target, Form(threads=1))
    assert (found.target_fps, found.predicted_fps, found.held_out_error) == (25.0, 26.0, 0.02)


def test_under_other_conditions_the_target_still_holds(
    place: tuple[Workspace, Target, Thinned], unit: Architecture, model: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A build goes on after ONNX Runtime was upgraded, and ends below its target."""
    workspace, target, thinned = place
    table = LatencyTable(
        replace(conditions_of(target, unit.input_size), runtime_version="0.0.1"),
        dict.fromkeys(unit.entries().values(), Row(0.5, 0.0, 3, 5.0, "2026-01-01", "0.1.0")),
    )
    write_table(table, workspace.tables)
    found = promise_of(workspace, thinned, unit, target, Form(threads=1))
    assert "its target is compared, its prediction is not" in capsys.readouterr().err
    assert (found.target_fps, found.predicted_fps, found.held_out_error) == (25.0, None, None)
    assert "target 25" in broken(monkeypatch, found, model, unit, Speed(50.0, 50.0, 50.0))
    assert not broken(monkeypatch, found, model, unit, Speed(20.0, 20.0, 20.0))


def test_with_box_voting_the_target_still_holds(
    place: tuple[Workspace, Target, Thinned], unit: Architecture, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, target, thinned = place
    found = promise_of(workspace, thinned, unit.with_(head="voted"), target, Form(threads=1))
    assert (found.target_fps, found.predicted_fps, found.held_out_error) == (25.0, None, None)
    assert (
        "thinned with --head nms, this bundle has --head voted: its target is compared, its "
        "prediction is not"
    ) in capsys.readouterr().err


def test_what_is_run_otherwise_is_promised_nothing_and_says_so(
    place: tuple[Workspace, Target, Thinned], unit: Architecture, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, target, thinned = place
    two = replace(thinned, threads=2)
    assert promise_of(workspace, two, unit, target, Form(threads=1)) == Promise()
    assert (
        "thinned for 25 FPS in onnxruntime f32, --threads 2; this bundle runs in onnxruntime f32, "
        "--threads 1: neither target nor prediction is compared"
    ) in capsys.readouterr().err
    raw = Form(threads=1, raw=True)
    assert promise_of(workspace, thinned, unit, target, raw) == Promise()
    assert "--threads 1, --raw: neither" in capsys.readouterr().err
    other = unit.with_(head="one-to-one")
    assert promise_of(workspace, two, other, target, Form(threads=1)) == Promise()
    assert not capsys.readouterr().err  # another network


@pytest.mark.parametrize(
    ("fps", "kept"), [(90.1, True), (109.9, True), (89.9, False), (110.1, False)]
)
def test_measured_is_within_a_tenth_of_predicted(fps: float, *, kept: bool) -> None:
    said = broken_promises(fps, 100.0, None)
    assert (said == "") is kept
    assert kept or f"{fps:.2f} FPS measured, 100.00 predicted (ratio {fps / 100:.3f}" in said


def test_a_build_and_a_fleet_name_their_own_command() -> None:
    with part_of("heat fleet"):
        assert broken_promises(9.0, None, 10.0).endswith("target 10: run heat fleet again")
    assert broken_promises(9.0, None, 10.0).endswith("run heat thin again")
