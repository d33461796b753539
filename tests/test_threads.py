"""Numbers of threads: planned beside other work, checked against the machine, recorded in runs."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deploy.edge.cpu import core_count
from deploy.edge.runtimes import check_threads, open_session
from heat.stages import build
from heat.stages.build_plan import SUPERNET_SHARE, TRAIN_EPOCHS, TRAIN_SHARE, training_budgets
from heat.stages.doctor import steadiness
from heat.workspace import Workspace
from latency_tables.devices import declared, resolve
from latency_tables.probe.machine import physical_cores
from latency_tables.threads import ThreadTiming, thread_check, trouble
from supernet.data.coco import load_split
from supernet.errors import DeviceError, UserError
from supernet.graph.writer import GraphWriter
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from supernet.train import threads
from supernet.train.loop import fit
from supernet.train.recipes import TrainConfig
from supernet.train.running import Running
from supernet.train.stepper import Stepper
from supernet.train.threads import FIXED_BY, OtherLoad, ThreadPlan, planned, threads_beside

CONFIG = TrainConfig(epochs=2, batch_size=4, precision="f32", warmup_steps=2)
ONES = np.ones((1, 4), np.float32)


@pytest.fixture(scope="module")
def model() -> bytes:
    graph = GraphWriter()
    x = graph.input("x", (1, 4))
    return graph.model([("y", graph.add(x, x), "float32")]).SerializeToString()


@pytest.mark.parametrize(
    ("cores", "other_load", "wanted"),
    [(2, 0.0, 2), (2, 0.2, 2), (2, 0.6, 1), (2, 2.0, 1), (1, 1.0, 1), (8, 1.0, 7), (8, 8.0, 4)],
)
def test_one_thread_fewer_for_every_busy_core(cores: int, other_load: float, wanted: int) -> None:
    assert threads_beside(cores, other_load) == wanted


@pytest.mark.alone
def test_the_load_of_others_excludes_this_process_and_its_children() -> None:
    watch = OtherLoad()
    code = "import time; t = time.monotonic()\nwhile time.monotonic() < t + 0.5: pass"
    with subprocess.Popen([sys.executable, "-c", code]):
        pass
    assert watch.seconds >= 0.5
    assert 0 <= watch.look() < core_count()


def test_own_time_counts_children() -> None:
    before = threads._counters()
    code = "import time\nwhile time.process_time() < 0.4: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert threads._counters()[2] - before[2] >= 0.35


def seen_by(loads: list[float], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the threads of a plan for two cores after each look at a load of others."""
    given = iter(loads)
    monkeypatch.setattr(OtherLoad, "look", lambda self: next(given))
    for name in ("FIRST_LOOK_S", "PLAN_EVERY_S", "CONFIRM_S"):
        monkeypatch.setattr(threads, name, 0.0)
    plan = ThreadPlan(2, adapts=True)
    plan.start(None)
    seen = [plan.now]
    for _ in loads[1:]:
        changed = plan.changed()
        assert changed == (plan.now != seen[-1])
        seen.append(plan.now)
        assert torch.get_num_threads() == plan.now
    return seen


def test_a_plan_falls_after_two_busy_looks_and_rises_after_three_quiet_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads = [0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    assert seen_by(loads, monkeypatch) == [2, 2, 1, 1, 1, 1, 1, 1, 2]


def test_a_process_that_starts_now_leaves_busy_cores_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A teacher with two threads beside two trainings took nearly three times as long an image."""
    for name in FIXED_BY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "FIRST_LOOK_S", 0.0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for load, wanted in ((0.0, 2), (2.0, 1)):
            monkeypatch.setattr(OtherLoad, "look", lambda self, load=load: load)
            assert threads.threads_now(2) == wanted
            with threads.sparing():
                assert torch.get_num_threads() == wanted
            assert torch.get_num_threads() == 2
        monkeypatch.setenv(FIXED_BY[0], "2")
        assert threads.threads_now(2) == 2, "a fixed number holds"
    finally:
        torch.set_num_threads(before)


def test_what_comes_and_goes_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan flapped between two numbers, saving the run's state at each change."""
    assert seen_by([0.0] + [1.0, 0.0] * 10, monkeypatch) == [2] * 21
    assert seen_by([1.0] + [0.0, 0.0, 1.0] * 7, monkeypatch) == [1] * 22


@pytest.mark.parametrize(
    ("waits", "expected"),
    [
        (
            (threads.PLAN_EVERY_S - 1, threads.PLAN_EVERY_S, 1.0, threads.CONFIRM_S),
            [(False, 2), (False, 2), (False, 2), (True, 1)],
        ),
        ((threads.LONG_LOOK_S,), [(True, 1)]),  # a step that waited for a core
    ],
)
def test_a_busy_look_is_confirmed_soon(
    waits: tuple[float, ...], expected: list[tuple[bool, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, loads = [0.0], iter([0.0, 1.0, 1.0])
    monkeypatch.setattr(OtherLoad, "look", lambda self: (now.__setitem__(0, 0.0), next(loads))[1])
    monkeypatch.setattr(OtherLoad, "seconds", property(lambda self: now[0]))
    monkeypatch.setattr(threads, "FIRST_LOOK_S", 0.0)
    plan = ThreadPlan(2, adapts=True)
    plan.start(None)
    found = []
    for seconds in waits:
        now[0] = seconds
        found.append((plan.changed(), plan.now))
    assert found == expected


def test_a_fixed_number_stays_and_afterwards_all_is_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with planned() as fixed:
        assert not fixed.adapts
        fixed.start(None)
        assert not fixed.changed() and torch.get_num_threads() == before
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    with planned() as free:
        assert free.adapts
        free.start(1)  # what a resumed run recorded
        assert free.now == torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_more_threads_than_cores_are_refused(model: bytes) -> None:
    cores = core_count()
    for wrong in (0, -1, cores + 1, 99999):
        with pytest.raises(UserError, match=rf"threads {wrong}: .*{cores} core"):
            check_threads(wrong)
        with pytest.raises(UserError, match=f"threads {wrong}"):
            open_session("onnxruntime", model, wrong)
    for wrong in (0, -3, 7):
        with pytest.raises(DeviceError, match=f"--threads {wrong}: .*6 cores"):
            declared("cpu-i7", threads=wrong)


@pytest.mark.parametrize(
    "options", [{}, {"spinning": False}, {"spinning": True}, {"pinning": True}]
)
def test_how_threads_wait_changes_no_result(model: bytes, options: dict[str, bool]) -> None:
    for count in {1, core_count()}:
        (y,) = open_session("onnxruntime", model, count, **options).run({"x": ONES})
        assert np.array_equal(y, ONES + ONES)
    if "spinning" in options:
        with pytest.raises(UserError, match="spinning"):
            open_session("openvino", model, 1, **options)
    else:
        (y,) = open_session("openvino", model, 1, **options).run({"x": ONES})
        assert np.array_equal(y, ONES + ONES)


def test_physical_cores_count_smt_once_and_heed_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latency_tables.probe import machine

    for number, siblings in enumerate(("0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7")):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 4, 5, 6})
    monkeypatch.setattr(machine, "cpu_quota", lambda: None)
    assert physical_cores(tmp_path) == 3
    assert physical_cores(tmp_path / "nothing") == 5
    monkeypatch.setattr(machine, "cpu_quota", lambda: 2.9)
    assert physical_cores(tmp_path) == 2
    monkeypatch.setattr(machine, "cpu_quota", lambda: 0.5)
    assert physical_cores(tmp_path) == 1


def test_the_default_is_the_physical_cores() -> None:
    assert resolve("cpu").threads == min(physical_cores(), core_count())


@pytest.mark.alone
def test_threads_that_do_not_pay_are_reported(model: bytes) -> None:
    one = ThreadTiming(10.0, 11.0)
    assert trouble({1: one, 2: ThreadTiming(5.5, 6.0)}) == ""
    assert "no faster" in trouble({1: one, 2: ThreadTiming(9.9, 10.0)})
    slow = {1: one, 2: ThreadTiming(6.0, 40.0)}
    assert "less steady" in trouble(slow)
    found = steadiness(slow)
    assert found.level == "warning" and "--threads 1" in found.fix
    timed = thread_check(model, {"x": ONES}, [1], seconds=0.1)
    assert 0 < timed[1].ms <= timed[1].slow_ms


def test_a_build_gives_its_trainings_what_is_left() -> None:
    assert training_budgets(10, 0) == (SUPERNET_SHARE * 600, TRAIN_SHARE * 600)
    supernet_s, train_s = training_budgets(10, 400)
    assert supernet_s < SUPERNET_SHARE * 600 and supernet_s < train_s <= 170
    assert training_budgets(10, 10_000) == (0.0, 0.0)


def test_a_run_goes_on_with_the_threads_it_recorded(
    shapes: Path, unit: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, though it was killed after the load of the machine had changed."""
    small = unit.with_(input_size=(96, 128), num_classes=4, blocks=("R", "S", "RW", "W"))
    found = load_split(shapes, "train")
    data = replace(found, records=found.records[:9])
    for name in threads.FIXED_BY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "FIRST_LOOK_S", 0.0)
    monkeypatch.setattr(threads, "PLAN_EVERY_S", 0.0)
    monkeypatch.setattr(threads, "CONFIRM_S", 0.0)
    monkeypatch.setattr(threads, "LONG_LOOK_S", float("inf"))  # however slow this machine is now
    torch.set_num_threads(2)

    def train(name: str, loads: list[float], running: Running | None = None) -> None:
        given = iter(loads)
        monkeypatch.setattr(OtherLoad, "look", lambda self: next(given, 1.0))
        torch.manual_seed(1)
        fit(Detector(small), data, CONFIG, tmp_path / name, running)
        assert torch.get_num_threads() == 2

    train("whole", [0.0])  # the looks at the first two steps see a busy core
    taken = Stepper.step
    steps = 0

    def killed(self: Stepper, parts: Any) -> dict[str, float] | None:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise InterruptedError
        return taken(self, parts)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", killed)
        with pytest.raises(InterruptedError):
            train("cut", [0.0])
    state = torch.load(tmp_path / "cut" / "state.pt", weights_only=True)
    assert (state["threads"], state["epoch"]) == (1, 1)
    train("cut", [], Running(resume=True))
    whole, cut = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    lines = (tmp_path / "whole" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [e["threads"] for e in events if e["event"] == "threads"] == [2, 1]


def test_a_build_says_that_it_plans_again(
    shapes: Path,
    unit: Architecture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = load_split(shapes, "train")
    monkeypatch.setattr(build, "step_seconds", lambda *_: 0.1)
    workspace = Workspace(tmp_path)
    assert build._train_epochs(workspace, unit, data, 4.0, spent_s=150.0) == 28
    said = capsys.readouterr().err
    assert said.startswith("plan: training 28 epochs instead of 52: 78 s are left for it")
    monkeypatch.setattr(build, "step_seconds", lambda *_: 9.0)
    assert build._train_epochs(workspace, unit, data, 4.0, spent_s=0.0) == 28  # as recorded
    late = Workspace(tmp_path / "late")
    assert build._train_epochs(late, unit, data, 4.0, spent_s=0.0) == TRAIN_EPOCHS[0]
    assert "keeps 12 epochs, the fewest" in capsys.readouterr().err
