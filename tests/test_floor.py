"""A target out of reach: refused where no machine reaches it, else answered by measurements."""

import math
import time
from dataclasses import replace
from pathlib import Path

import pytest

from heat.spaces import SPACES, search_space
from heat.thinning import floor
from heat.thinning.candidates import Candidate
from heat.thinning.ceiling import ceiling_fps, refuse_impossible
from heat.thinning.floor import advice, check_ways, other_settings, smaller_size, time_way
from heat.thinning.limits import Cost, Limits
from heat.thinning.thinned import Way
from latency_tables.devices import Target, declared, resolve
from latency_tables.probe.setting import Setting
from supernet.errors import DeviceError, UserError
from supernet.heatdetr.architecture import Architecture, preset
from tests.command_line import SMALL, fails, run

NETWORK = preset("pico", input_size=(448, 448))


def cpu(threads: int = 2, cores: int = 4) -> Target:
    found = resolve("cpu", threads=1)
    return replace(found, threads=threads, detected=replace(found.detected, cores=cores))


def cost(fps: float) -> Cost:
    return Cost(fps, math.nan, math.nan, 1000.0 / fps, 1100.0 / fps)


def test_every_way_is_measured_and_the_best_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "BUDGET_S", 25.0)
    asked: list[tuple[tuple[int, int], Setting]] = []

    def time_one(network: Architecture, setting: Setting) -> Cost:
        asked.append((network.input_size, setting))
        if setting.precision == "bf16":
            raise DeviceError("executes bf16 as f32")
        fps = 10.0 * 448 / network.input_size[0] * setting.threads / 2
        return cost(fps * (4.0 if setting.precision == "int8" else 1.0))

    target = cpu()
    ways = check_ways(NETWORK, target, Limits(target_fps=24), 10.0, time_one=time_one)
    assert [way.fps for way in ways if way.reaches] == sorted(
        (way.fps for way in ways if way.reaches), reverse=True
    )
    assert ways[0].reaches and not ways[-1].reaches
    assert {way.reaches for way in ways} == {True, False}
    flags = [way.way for way in ways]
    assert "--threads 4" in flags and "--threads 1" in flags
    assert not any("bf16" in text for text in flags), "what cannot run is left out"
    sizes = [text for text in flags if text.startswith("--input-size")]
    # A size that was measured to be too slow is followed by a smaller one.
    assert len(sizes) == floor.SIZE_TRIES or any(way.reaches for way in ways if way.way in sizes)
    assert len(asked) >= len(ways)


@pytest.mark.alone
def test_the_time_for_checking_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "BUDGET_S", 0.5)
    monkeypatch.setattr(floor, "STARTUP_S", 0.05)

    def slow(_: Architecture, __: Setting) -> Cost:
        time.sleep(0.2)
        return cost(5.0)

    started = time.monotonic()
    ways = check_ways(NETWORK, cpu(), Limits(target_fps=1000), 500.0, time_one=slow)
    assert 1 <= len(ways) <= 2 and time.monotonic() - started < 1.0


def test_what_is_said_of_the_ways() -> None:
    ways = [Way("--threads 4", 30.0, True), Way("--runtime openvino", 26.0, True)]
    said = "measured to reach it, best first: --threads 4 (30.0 FPS) or --runtime openvino"
    assert advice(ways).startswith(said)
    short = [Way("--threads 4", 20.0, False), Way("--runtime openvino", 16.0, False)]
    assert advice([*short, Way("x", 1.0, False)]).startswith("none of the 3 other ways")
    assert "x" not in advice([*short, Way("x", 1.0, False)]).split("best: ")[1]
    assert "no other way" in advice([])


def test_a_smaller_size_keeps_its_shape_and_has_an_end() -> None:
    assert smaller_size((448, 448), 0.5) == (288, 288)
    assert smaller_size((64, 448), 0.1) == (64, 128)
    assert smaller_size((64, 64), 0.1) is None
    assert smaller_size((448, 448), 1.0) == (416, 416)


def test_other_ways_differ_from_the_one_asked_for() -> None:
    target = cpu(threads=1, cores=8)
    ways = list(other_settings(target))
    assert len({flags for flags, _ in ways}) == len(ways)
    assert all(setting != target.setting for _, setting in ways)
    assert [s.threads for flags, s in ways if "--threads" in flags] == [8, 4, 2]
    gpu = replace(target, device=replace(target.device, kind="cuda"), precision="f16")
    assert {flags for flags, _ in other_settings(gpu)} == {
        "--precision f32",
        "--precision bf16",
        "--precision int8",
    }


def test_a_way_is_really_timed() -> None:
    network = NETWORK.with_(input_size=(64, 64))
    setting = Setting(runtime="onnxruntime", precision="f32", threads=1)
    found = time_way(network, setting)
    assert found.fps == pytest.approx(1000.0 / found.p50_ms) and found.p95_ms >= found.p50_ms
    with pytest.raises(UserError):  # ONNX Runtime has no such convolutions on CPUs
        time_way(network, replace(setting, precision="bf16"))


def test_no_machine_is_as_fast_as_the_ceiling_and_none_is_refused_below_it() -> None:
    target = cpu()
    for name in SPACES:
        for size in ((32, 32), (448, 448)):
            assert ceiling_fps(search_space(name, input_size=size), target) > 20_000
    huge = search_space("large", input_size=(4096, 4096))
    assert ceiling_fps(huge, cpu(1, 1)) < ceiling_fps(huge, declared("h200"))
    space = search_space("micro", input_size=(448, 448))
    refuse_impossible([Candidate(space, (target,), (Limits(target_fps=10_000),))])
    possible = Candidate(space, (target,), (Limits(target_fps=24),))
    absurd = Candidate(space, (target,), (Limits(target_fps=1e12),))
    refuse_impossible([absurd, possible])  # one of the choices may be reached
    with pytest.raises(UserError, match=r"--target-fps 1e\+12: no machine is so fast"):
        refuse_impossible([absurd])
    with pytest.raises(UserError, match="--max-latency-ms 1e-09: no machine"):
        refuse_impossible([Candidate(space, (target,), (Limits(max_latency_ms=1e-9),))])
    both = Limits(target_fps=24, max_latency_ms=1e-9)
    with pytest.raises(UserError, match="--max-latency-ms"):
        refuse_impossible([Candidate(space, (target, target), (Limits(target_fps=1), both))])


def test_an_absurd_target_is_refused_before_any_work(tmp_path: Path, shapes: Path) -> None:
    out = tmp_path / "run"
    for wish in (["--target-fps", 1e12], ["--max-latency-ms", 1e-9]):
        assert "no machine is so fast" in fails(2, "thin", *wish, *SMALL, "--out", out)
    line = fails(2, "build", "--data", shapes, "--target-fps", 1e12, "--out", out)
    assert "no machine is so fast" in line
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(
        '[camera]\ndevice = "cpu"\ntarget_fps = 1\n[server]\ndevice = "cpu"\ntarget_fps = 1e12\n'
    )
    line = fails(2, "thin", "--targets", fleet, "--space", "micro", "--out", out)
    assert "[server]" in line and "no machine is so fast" in line
    assert not out.exists(), "nothing was measured or written"


def test_a_target_out_of_reach_is_answered_by_measurements(tmp_path: Path) -> None:
    """On this machine: the smallest network was measured, and so was what is offered instead."""
    out = tmp_path / "run"
    code, result, errors = run("thin", "--target-fps", 1.5e4, *SMALL, "--out", out)
    assert code == 3 and errors.count("out of reach") == 1
    assert result["floor"]["widths"] == [32, 32, 32, 32]
    assert result["floor"]["blocks"] == ["R", "R", "R", "R"]
    assert result["measured_fps"] and result["architecture"] is None and not result["met"]
    ways = result["checked_ways"]
    assert ways and all(way["fps"] > 0 and not way["reaches"] for way in ways)
    assert [way["fps"] for way in ways] == sorted((way["fps"] for way in ways), reverse=True)
    message = errors.strip().splitlines()[-1]
    assert f"none of the {len(ways)} other ways checked reaches it" in message
    assert message.count(ways[0]["way"]) == 1


def test_other_ways_wait_as_their_commands_would() -> None:
    """`heat thin` keeps how threads wait with a runtime, and drops it with another one."""
    target = replace(cpu(), spinning="never", pinning=True)
    for flags, setting in other_settings(target):
        waits = (setting.spinning, setting.pinning)
        assert waits == (("brief", False) if "--runtime" in flags else ("never", True)), flags
