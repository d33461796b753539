"""The workspace's record, the fleet's file, and what must not be lost or shown."""

import json
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.whole_folder import replacing_folder, tidy
from heat.commands.find import last_format, recorded_data
from heat.commands.fleet_file import read_fleet
from heat.stages import adopt
from heat.stages.build import _plan
from heat.stages.fleet_build import is_exported
from heat.workspace import Workspace
from latency_tables.devices import resolve
from supernet.atomic import write_text
from supernet.data.coco import load_split
from supernet.detr.family import DetrArchitecture
from supernet.errors import UserError, masked


def test_commands_at_once_lose_no_stage(tmp_path: Path) -> None:
    """Each reads the record, adds its stage and writes: in turns, or one of them is lost."""
    workspace = Workspace(tmp_path)
    names = [f"stage{number}" for number in range(12)]
    threads = [
        threading.Thread(target=workspace.record, args=(name, {"name": name})) for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(workspace.stages()) == set(names)


def test_records_are_ordered_by_time_wherever_they_were_written(tmp_path: Path) -> None:
    """Older versions wrote local times: where the clock went back, later ones had less text."""
    workspace = Workspace(tmp_path)
    for name in ("thin", "train", "eval"):
        workspace.record(name, {})
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["stages"]["eval"]["finished"].endswith("+00:00")
    record["stages"]["thin"]["finished"] = "2026-10-25T02:30:00+02:00"
    record["stages"]["train"]["finished"] = "2026-10-25T02:10:00+01:00"  # later
    record["stages"]["eval"]["finished"] = "yesterday"
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert workspace.finished("train") > workspace.finished("thin") > workspace.finished("eval")
    assert workspace.finished("eval") == workspace.finished("bench")


def test_a_build_goes_on_under_the_name_that_its_cpu_has_now(tmp_path: Path) -> None:
    """CPUs that hide their number had the same name for every generation."""
    workspace = Workspace(tmp_path)
    here = resolve("cpu", threads=1)
    asked: Any = {"data": str(tmp_path), "device": "amd-epyc-family-25-model-1", "minutes": 5.0}
    workspace.record("plan", asked | {"device": "amd-epyc"})
    nothing: Any = None
    target = replace(here, name="amd-epyc-family-25-model-1")
    assert _plan(workspace, target, nothing, asked)["minutes"] == 5.0
    for name in ("amd-epyc-9555", "cpu-i7"):
        with pytest.raises(UserError, match="another device"):
            _plan(workspace, replace(here, name=name), nothing, asked | {"device": name})


def test_a_member_knows_its_fleet_wherever_it_is_opened(tmp_path: Path) -> None:
    fleet = Workspace(tmp_path / "run")
    fleet.record("supernet", {"epochs": 1})
    fleet.member("camera").record("thin", {"met": True})
    again = Workspace(tmp_path / "run" / "fleet" / "camera")
    assert again.supernet == fleet.supernet and again.tables == fleet.tables
    again.record("train", {"epochs": 1})
    assert again.supernet == fleet.supernet and set(again.stages()) == {"thin", "train"}
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = Workspace(tmp_path / "moved" / "fleet" / "camera")
    assert moved.supernet == tmp_path / "moved" / "supernet"
    assert Workspace(tmp_path / "moved").supernet == tmp_path / "moved" / "supernet"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://***@host/db"),
        ("rtsp://me:se/cret@host:554/a", "rtsp://***@host:554/a"),
        ("rtsp://host/a?user=me&password=secret&x=1", "rtsp://host/a?user=me&password=***&x=1"),
        ("rtsp://host/live", "rtsp://host/live"),
        ("cannot open rtsp://me:secret@box/1: gone", "cannot open rtsp://***@box/1: gone"),
        ("mail me@example.org", "mail me@example.org"),
        ("http://h/a?access_token=abc&x=1", "http://h/a?access_token=***&x=1"),
        ("http://h/a?x=1&pass=abc", "http://h/a?x=1&pass=***"),
        ("http://h/a?api_key=abc", "http://h/a?api_key=***"),
        ("http://h/a?X-Amz-Signature=abc", "http://h/a?X-Amz-Signature=***"),
        ("http://h/a?sig=abc", "http://h/a?sig=***"),
        ("rtsp://h/user=admin_password=abc_channel=1", "rtsp://h/user=admin_password=***"),
        ("rtsp://h/user=admin&password=abc&x=1", "rtsp://h/user=admin&password=***&x=1"),
        ("rtsp://me:abc@h/password=def", "rtsp://***@h/password=***"),
        ("wrote a/b_key=3", "wrote a/b_key=3"),
    ],
)
def test_urls_show_no_passwords(url: str, shown: str) -> None:
    assert masked(url) == shown
    assert str(UserError(url)) == shown


def test_recorded_data_is_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An export from another folder silently compared synthetic images."""
    (tmp_path / "there" / "d").mkdir(parents=True)
    workspace = Workspace(tmp_path / "run")
    assert recorded_data(workspace, "without") is None
    monkeypatch.chdir(tmp_path / "there")
    workspace.record("train", {"data": "d"})
    monkeypatch.chdir(tmp_path)
    assert recorded_data(workspace, "without") == tmp_path / "there" / "d"
    assert not capsys.readouterr().err
    (tmp_path / "there" / "d").rmdir()
    assert recorded_data(workspace, "without") is None
    assert "is gone: without (--data DIR)" in capsys.readouterr().err


def test_adopted_weights_have_no_data_of_the_training_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Export and eval took that training's data."""
    shape = DetrArchitecture()
    network = SimpleNamespace(architecture=shape, state_dict=dict, parameters=list)
    monkeypatch.setattr(adopt, "load_published", lambda *_: network)
    workspace = Workspace(tmp_path)
    workspace.record("train", {"data": str(tmp_path)})
    adopt.adopt(workspace, Path("x.pth"), shape, None, restart=True)
    assert recorded_data(workspace, "without") is None


@pytest.mark.parametrize(
    ("runtime", "here", "format"),
    [
        ("openvino", True, "openvino"),
        ("openvino", False, "openvino"),
        ("onnxruntime", True, "onnx"),
        ("torch", True, "onnx"),
        ("tensorrt", True, "tensorrt"),
        ("tensorrt", False, "onnx"),  # its engine is built there
    ],
)
def test_a_bundle_is_of_the_runtime_that_was_thinned_for(
    tmp_path: Path, runtime: str, here: bool, format: str
) -> None:
    workspace = Workspace(tmp_path)
    assert last_format(workspace, ("thin", "profile")) == "onnx"
    workspace.record("profile", {"runtime": "onnxruntime", "here": True})
    workspace.record("thin", {"runtime": runtime, "here": here})
    assert last_format(workspace, ("thin", "profile")) == format
    assert last_format(workspace, ("profile", "thin")) == "onnx"


def test_the_record_holds_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["heat", "thin", "--study", "postgresql://me:secret@host/db"])
    Workspace(tmp_path).record("thin", {})
    text = (tmp_path / "run.json").read_text()
    assert "secret" not in text and "postgresql://***@host/db" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[camera]\ntarget_fps = "24"', "target_fps = '24': a number, without quotes"),
        ("[camera]\ntarget_fps = true", "target_fps = True: a number"),
        ('[camera]\nmax_latency_ms = 40\npercentile = "p99"', "'p99': one of p50, p95"),
        ('[camera]\ntarget_fps = 24\npercentile = "p95"', "(percentile in a fleet file) is of"),
        ("[camera]\ntarget_fps = 24\nthreads = 1.5", "threads = 1.5: a whole number"),
        ("[camera]\ntarget_fps = 24\ndevice = 7", "device = 7: a text"),
        ('[camera]\ntarget_fps = 24\ntrust_table = "yes"', "trust_table = 'yes': true or false"),
        ('[camera]\ntarget_fps = 24\nruntime = "toaster"', "'toaster': one of onnxruntime"),
        ('[camera]\ntarget_fps = 24\nprecision = "f32,f8"', "'f8' is none of"),
        ('[camera]\ntarget_fps = 24\ninput_size = "big"', "--input-size"),
        ("[camera]\ntarget_fps = -1", "[camera]: --target-fps -1"),
        ('[camera]\ndevice = "cpu"', "no speed asked for"),
        ('["../../x"]\ntarget_fps = 24', "name is that of its folder"),
        ('[".."]\ntarget_fps = 24', "name is that of its folder"),
        ('[""]\ntarget_fps = 24', "name is that of its folder"),
        ('["a/b"]\ntarget_fps = 24', "name is that of its folder"),
        ('[camera]\ntarget_fps = 24\ndevice = "no-such"', "unknown device 'no-such'"),
        ('[camera]\ntarget_fps = 24\ndevice = "cpu:openvno"', "'openvno'"),
        ("[camera]\ntarget_fps = 24\nthreads = 0", "threads = 0: at least 1"),
        ('[camera]\ntarget_fps = 24\ninput_size = "640..320"', "must be the smaller one"),
        ('[camera]\ntarget_fps = 24\ninput_size = "320..480..640"', "two sides, as 320..640"),
        (
            '[camera]\ntarget_fps = 24\ninput_size = "320x640..640"',
            "320x640 has two sides, give the longer",
        ),
        (f"[camera]\ntarget_fps = 1{'0' * 400}", "too large"),
    ],
)
def test_a_fleet_file_is_read_whole_before_anything_is_thinned(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text("[first]\ntarget_fps = 5\n" + content)
    with pytest.raises(UserError) as raised:
        read_fleet(path)
    assert message in str(raised.value) and "fleet.toml [" in str(raised.value)


def test_a_bundle_survives_an_export_that_was_killed_in_the_swap(tmp_path: Path) -> None:
    folder = tmp_path / "b[1]undle"
    old = tmp_path / ".b[1]undle.old.heat-tmp"
    old.mkdir()
    (old / "card.json").write_text("{}")
    scratch = tmp_path / ".b[1]undle.abcd1234.heat-tmp"
    scratch.mkdir()
    others = [
        tmp_path / ".b[1]undle.other.abcd1234.heat-tmp",  # of a bundle called b[1]undle.other
        tmp_path / ".b[1]undle.original",  # a user's
        tmp_path / ".b[1]undle.old",
    ]
    for other in others:
        other.mkdir()
    tidy(folder)
    assert (folder / "card.json").exists() and not old.exists()
    assert not scratch.exists() and all(other.exists() for other in others)
    old.mkdir()  # both are there: the new one had its name already
    tidy(folder)
    assert (folder / "card.json").exists() and not old.exists()


def test_a_folder_that_another_process_fills_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    with pytest.raises(UserError, match="is no longer empty"):  # noqa: SIM117
        with replacing_folder(folder, fresh=True) as first:
            (first / "a.txt").write_text("first")
            with replacing_folder(folder, fresh=True) as second:
                assert first.exists()
                (second / "a.txt").write_text("second")
    assert (folder / "a.txt").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_the_folder_that_a_command_runs_in_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (".", "..", "/"):
        with (
            pytest.raises(UserError, match="run it elsewhere, or give a folder below"),
            replacing_folder(Path(folder)),
        ):
            pass


def test_a_linked_folder_is_replaced_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there")
    with replacing_folder(link) as scratch:
        (scratch / "a.txt").write_text("new")
    assert link.is_symlink() and (tmp_path / "there" / "a.txt").read_text() == "new"


def test_a_name_of_255_bytes_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 250 + ".json")
    write_text(path, "{}")
    assert json.loads(path.read_text()) == {}


def test_a_member_is_exported_again_where_another_export_is_asked_for(
    tmp_path: Path, shapes: Path
) -> None:
    val = load_split(shapes, "val")
    workspace = Workspace(tmp_path)
    workspace.record("thin", {"here": True})
    bundle = workspace.bundle("onnx")
    bundle.mkdir(parents=True)
    (bundle / "card.json").write_text("{}")
    done: dict[str, object] = {"bundle": str(bundle), "broken": None, "target_fps": 20.0}
    asked: dict[str, object] = {"calibrate": True, "judged_on": str(val.root.absolute())}
    cases: list[tuple[dict[str, object], bool]] = [
        ({}, True),  # of an older version
        (asked, True),
        (asked | {"calibrate": False}, False),
        (asked | {"judged_on": str(tmp_path)}, False),
        (asked | {"broken": "19 FPS measured, target 20"}, False),
        (asked | {"raw": True}, False),
        (asked | {"target_fps": None}, False),  # run otherwise: nothing was compared
        (asked | {"bundle": "moved/fleet/door/bundle-onnx"}, True),
    ]
    for changed, kept in cases:
        workspace.record("export-onnx", done | changed)
        assert is_exported(workspace, "onnx", True, val) is kept
    copy = Workspace(tmp_path / "copy")  # whose record names the original's bundle
    copy.record("thin", {"here": True})
    copy.record("export-onnx", done)
    assert not is_exported(copy, "onnx", True, val)


def test_nobody_puts_the_old_folder_back_during_the_swap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    rename = Path.rename

    def renamed(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        if self == folder:
            tidy(folder)  # as another process would
        return moved

    monkeypatch.setattr(Path, "rename", renamed)
    with replacing_folder(folder) as scratch:
        (scratch / "a.txt").write_text("new")
    assert [path.name for path in folder.iterdir()] == ["a.txt"]
