"""Tables and checkpoints that several commands write: locked first, then read."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deploy.edge.session import runtime_version
from heat import tables
from heat.spaces import search_space
from heat.stages import adopt, elsewhere, profile, show
from heat.tables import table_lock
from heat.thinning import candidates as candidates_module
from heat.thinning.candidates import Candidate, open_search
from heat.thinning.limits import Limits
from heat.thinning.moves import ThinningRules
from heat.thinning.source import Source
from heat.workspace import Workspace
from latency_tables.devices import resolve
from latency_tables.probe.lock import only_one
from latency_tables.probe.machine import detect_cpu
from latency_tables.probe.setting import Setting
from latency_tables.store import conditions_of
from latency_tables.table import LatencyTable, Row
from latency_tables.table_file import write_table
from supernet.data.coco import load_split
from supernet.detr.family import DetrArchitecture
from supernet.errors import UserError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.supernet import Supernet
from tests.command_line import fails

TAKEN = rf"process {os.getpid()} \(.*, since .*\) is writing"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "run")


@contextmanager
def held(workspace: Workspace, size: tuple[int, int], name: str = "") -> Iterator[None]:
    """Hold a table of this machine, as another process would."""
    conditions = conditions_of(resolve("cpu", runtime="onnxruntime", threads=1), size)
    with table_lock(workspace, replace(conditions, device=name or conditions.device)):
        yield


def test_a_file_system_without_locks_is_no_other_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(UserError, match=r"cannot lock .*No locks available"):  # noqa: SIM117
        with only_one(tmp_path / "a"):
            pass


def never(*_: Any, **__: Any) -> Any:
    pytest.fail("read or measured without the lock")


def test_results_are_merged_under_the_lock(
    workspace: Workspace, unit: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The existing table was read first: what was saved in between was lost."""
    here = conditions_of(resolve("cpu", runtime="onnxruntime", threads=1), (128, 192))
    rows = dict.fromkeys(unit.entries().values(), Row(0.5, 0.0, 3, 5.0, "2026-01-01", "0.1"))
    table = LatencyTable(here, rows)
    write_table(table, workspace.tables)
    space = search_space("micro", input_size=(128, 192), num_classes=3)
    plan = {"space": space.to_dict(), "device": "cpu"}
    monkeypatch.setattr(elsewhere, "table_from_results", lambda path: table)
    monkeypatch.setattr(elsewhere, "read_plan", lambda path: plan)
    with monkeypatch.context() as patch, held(workspace, (128, 192)):
        patch.setattr(elsewhere, "read_table", never)
        with pytest.raises(UserError, match=TAKEN):
            elsewhere.unpack_results(workspace, Path("results.jsonl"))
    elsewhere.unpack_results(workspace, Path("results.jsonl"))
    assert workspace.need("profile", "heat profile")["entries"] == len(rows)


def test_an_estimate_is_written_under_the_lock(workspace: Workspace) -> None:
    size = ["--space", "micro", "--input-size", "96x128", "--runtime", "onnxruntime"]
    asked = ["--device", "cpu-i7", "--estimate", "--threads", 1, *size, "--out", workspace.root]
    with held(workspace, (96, 128), "cpu-i7"):
        assert re.search(TAKEN, fails(2, "profile", *asked))
    assert not list(workspace.tables.glob("*.csv"))


def test_a_search_evaluates_nothing_before_it_holds_the_table(
    workspace: Workspace, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_split(shapes, "train")
    space = search_space("micro", input_size=(96, 128), num_classes=data.num_classes)
    torch.manual_seed(0)
    supernet = Supernet(space).eval()
    source = Source(supernet, supernet.logits(), "digest")
    target = resolve("cpu", runtime="onnxruntime", threads=1)
    candidate = Candidate(space, (target,), (Limits(target_fps=1.0),))
    for name in ("Evaluations", "Journal", "open_table"):
        monkeypatch.setattr(candidates_module, name, never)
    opened = open_search(workspace, candidate, source, data, "loss", ThinningRules(), False)
    with held(workspace, (96, 128)), pytest.raises(UserError, match=TAKEN), opened:
        pass


def test_the_stacks_are_measured_once(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = Setting(runtime="onnxruntime", precision="f32", threads=1)
    here = f"{detect_cpu().slug}-onnxruntime-{runtime_version('onnxruntime')}"
    path = workspace.tables / f"figure2-{here}-onnxruntime-f32-t1.json"
    with monkeypatch.context() as patch, only_one(path):
        patch.setattr(show, "measure_stacks", never)
        with pytest.raises(UserError, match=TAKEN):
            show.stacks_of(workspace, setting)
    monkeypatch.setattr(show, "measure_stacks", lambda setting: {"cw": 2.0})
    assert show.stacks_of(workspace, setting) == {"cw": 2.0}


def test_a_profile_reads_the_table_under_its_lock(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = resolve("cpu", runtime="onnxruntime", threads=1)
    space = search_space("micro", input_size=(96, 128), num_classes=3)
    monkeypatch.setattr(tables, "open_table", never)
    with held(workspace, (96, 128)), pytest.raises(UserError, match=TAKEN):
        profile.profile(workspace, target, space)


def test_adopting_looks_again_once_it_holds_the_folder(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that ended while the checkpoint was read was replaced."""

    def load(*_: Any) -> Any:
        workspace.train.mkdir(parents=True)
        (workspace.train / "state.pt").write_bytes(b"of a training")
        shape = SimpleNamespace(num_classes=2, to_json=lambda: "{}")
        return SimpleNamespace(architecture=shape, state_dict=dict)

    monkeypatch.setattr(adopt, "load_published", load)
    with pytest.raises(UserError, match="holds a trained network"):
        adopt.adopt(workspace, Path("x.pth"), DetrArchitecture(), None)
    assert (workspace.train / "state.pt").exists()


@pytest.mark.parametrize(
    "asked", [["--device", "cpu", "--device", "cpu"], ["--device", "cpu", "--precision", "f32,f32"]]
)
def test_a_table_is_asked_for_once(workspace: Workspace, asked: list[str]) -> None:
    """A command with the same device twice was refused because of itself, as of another process."""
    small = ["--space", "micro", "--input-size", "96x128", "--runtime", "onnxruntime"]
    command = ["thin", "--target-fps", 1, "--threads", 1, *small, *asked, "--out", workspace.root]
    assert "is asked for twice: give each device and precision once" in fails(2, *command)
    assert not workspace.tables.exists()
