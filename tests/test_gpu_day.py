"""The day on a GPU, rehearsed on the CPU: its stages, what a second call repeats, its wheels."""

import importlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

GPU_DAY = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu_day.py"


def gpu_day(*arguments: object) -> tuple[int, list[dict[str, Any]], str]:
    """Run the script; return its code, its lines and its errors."""
    done = subprocess.run(
        [sys.executable, str(GPU_DAY), *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return done.returncode, lines, done.stderr


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """All stages on the CPU, tiny."""
    out = tmp_path_factory.mktemp("gpu") / "day"
    code, lines, errors = gpu_day("--rehearse", "--minutes", 60, "--out", out)
    assert code == 0, (lines, errors)
    return out, lines


def test_every_stage_is_rehearsed(rehearsed: tuple[Path, list[dict[str, Any]]]) -> None:
    out, lines = rehearsed
    assert [line["state"] for line in lines] == ["done"] * 7, lines
    results = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}
    assert all(result["rehearsed"] and result["state"] == "done" for result in results.values())
    assert results["here"]["rates"]["copy_gbs"] > 0
    table = results["table"]["tables"]["f32"]
    assert table["timed"] > 0 and table["sum"]["networks"] == 3
    (looped,) = results["table"]["loop"]
    assert looped["measured"] > 0
    assert results["onnx_cuda"]["runtimes"]["onnxruntime f32"]["agrees"]
    (race,) = [rows for what, rows in results["race"]["races"].items() if what.endswith("16")]
    assert {"tiny", "detr-r50", "rt-detr-r18", "d-fine-n"} <= set(race)
    assert {"eager", "graph", "gmacs"} <= set(race["detr-r50"])
    assert results["training"]["training"]["epochs"] == 1 and "ap" in results["training"]
    assert results["nccl"]["epochs_after_the_cpu"] == results["nccl"]["epochs_on_the_gpu"] + 1
    assert out.with_name("day.tar.gz").exists()


def test_what_is_done_is_not_done_again(rehearsed: tuple[Path, list[dict[str, Any]]]) -> None:
    out, _ = rehearsed
    code, lines, _ = gpu_day("--rehearse", "--out", out)
    assert code == 0 and {line["state"] for line in lines} == {"done before"}
    found = json.loads((out / "here.json").read_text())
    (out / "here.json").write_text(json.dumps({**found, "torch": "0.1"}))
    code, lines, _ = gpu_day("--rehearse", "--only", "here,nccl", "--out", out)
    states = {line["stage"]: line["state"] for line in lines}
    assert code == 0 and states == {"here": "done", "nccl": "done before"}


def test_a_failed_part_stops_no_other(
    rehearsed: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Annotations are broken; what was done before is kept, and the reason is named."""
    out, _ = rehearsed
    annotations = tmp_path / "annotations" / "instances_train.json"
    annotations.parent.mkdir()
    annotations.write_text("{")
    code, lines, _ = gpu_day(
        "--rehearse", "--again", "--only", "training,here", "--data", tmp_path, "--out", out
    )
    assert code == 1
    assert [line["state"] for line in lines] == ["done", "partly"]
    assert "training: DataError" in lines[1]["why"]
    assert json.loads((out / "nccl.json").read_text())["state"] == "done"


def test_data_that_are_missing_are_refused_at_once(tmp_path: Path) -> None:
    code, lines, errors = gpu_day("--rehearse", "--data", "nowhere", "--out", tmp_path / "day")
    assert code == 2 and not lines and "no data folder at" in errors


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_nothing_is_started(tmp_path: Path) -> None:
    code, lines, _ = gpu_day("--out", tmp_path / "day")
    assert code == 1
    assert {line["state"] for line in lines} == {"not started"}
    assert {line["why"] for line in lines} == {"no GPU (nvidia-smi lists none)"}
    code, lines, _ = gpu_day("--out", tmp_path / "day", "--minutes", 0.05)
    assert re.match("[23] s are left, it needs 60", lines[0]["why"])


def test_a_card_that_torch_cannot_use_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver too old for torch's CUDA, and then no card at all; the program is made up."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho 'Tesla V100, 418.40, 135, 1530, 877, 16160'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}:{os.environ['PATH']}")
    asked = ("--only", "here", "--out", tmp_path / "day")
    code, lines, _ = gpu_day(*asked)
    assert code == 1 and lines[0]["state"] == "failed"
    assert "cannot use a GPU here (driver 418.40" in lines[0]["why"]
    smi.unlink()
    _, lines, _ = gpu_day(*asked)
    assert lines[0]["why"].startswith("no GPU")
    kept = json.loads((tmp_path / "day" / "here.json").read_text())
    assert kept["gpus"][0]["model"] == "Tesla V100" and kept["state"] == "failed"


@pytest.fixture
def day(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("gpu_day", GPU_DAY)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_day", module)
    spec.loader.exec_module(module)
    return module


STAGE = """
import json, pathlib, sys
path = pathlib.Path(sys.argv[sys.argv.index("--out") + 1]) / (pathlib.Path(__file__).stem + ".json")
runs = json.loads(path.read_text())["runs"] + 1 if path.exists() else 1
left_out = ["a part"] if "first" in path.stem and runs == 1 else []
path.write_text(json.dumps({"rehearsed": True, "runs": runs, "left_out": left_out}))
"""


def test_only_what_is_not_done_is_repeated_and_shares_the_time(
    day: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first of two made-up stages is done partly, and gets all the time of the second call."""
    names = ("first", "second")
    for name in names:
        (tmp_path / f"{name}.py").write_text(STAGE)
    monkeypatch.setattr(day, "STAGES", tmp_path)
    monkeypatch.setattr(day, "PLAN", tuple(day.Planned(name, 10, 1) for name in names))
    monkeypatch.setattr(day.signal, "signal", lambda *_: None)
    arguments = ["--rehearse", "--out", tmp_path / "day", "--pack-into", tmp_path / "back"]
    monkeypatch.setattr(sys, "argv", ["gpu_day", "--minutes", "1", *map(str, arguments)])

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert day.main() == 1
    partly, done = lines()
    assert (partly["state"], partly["why"]) == ("partly", "no time for a part")
    assert done["state"] == "done" and partly["limit_s"] == pytest.approx(30, abs=1)
    assert (tmp_path / "back" / "day.tar.gz").exists()
    assert not list(tmp_path.glob("*.tar.gz"))
    assert day.main() == 0
    before, again = lines()
    assert before == {"stage": "second", "state": "done before"}
    assert again["state"] == "done" and again["limit_s"] == pytest.approx(60, abs=1)
    assert json.loads((tmp_path / "day" / "first.json").read_text())["runs"] == 2


def test_a_stage_goes_on_with_its_result(
    day: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same device and torch, without what failed."""
    assert day.STAGES
    stage = importlib.import_module("stage")
    monkeypatch.setattr(sys, "argv", ["x", "--rehearse", "--out", str(tmp_path)])
    first = stage.Stage("x")
    first.leave(rows=[1])
    first.failed("part", ValueError("why"))
    assert stage.Stage("x").result == {k: v for k, v in first.result.items() if k != "failures"} | {
        "seconds": 0.0
    }
    file = tmp_path / "x.json"
    file.write_text(file.read_text().replace(torch.__version__, "0"))
    assert "rows" not in stage.Stage("x").result


def test_a_signal_ends_the_stage_and_packs(tmp_path: Path) -> None:
    out = tmp_path / "day"
    command = [sys.executable, str(GPU_DAY), "--rehearse", "--only", "here", "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (out / "here.log").exists():
            time.sleep(0.01)
        time.sleep(0.3)  # torch is being imported
        process.terminate()
        line = json.loads(process.communicate()[0])
    assert process.returncode == 1 and line["state"] == "stopped by a signal"
    assert json.loads((out / "here.json").read_text())["state"] == "stopped by a signal"
    assert (tmp_path / "day.tar.gz").exists()


def test_a_missing_wheel_is_named(day: Any, tmp_path: Path) -> None:
    for module, carried in (("optuna", "optuna=="), ("rich_rst", "rich-rst==")):
        (tmp_path / "table.log").write_text(f"ModuleNotFoundError: No module named '{module}'\n")
        assert f"carry {carried}" in day.last_line(tmp_path, "table")
    assert day.last_line(tmp_path, "race") == "no output"


def test_wheels_are_listed_and_weighed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(GPU_DAY), "--wheels"], capture_output=True, text=True, check=True
    )
    wanted = dict(line.split("==") for line in done.stdout.split())
    assert "optuna" in wanted and "torch" not in wanted
    files = {
        name: tmp_path / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
        for name, version in wanted.items()
    }
    for file in files.values():
        file.write_bytes(b"x")
    assert gpu_day("--wheels", tmp_path)[0] == 0
    built = files["sqlalchemy"].name.replace("py3-none-any", "cp312-cp312-manylinux_2_28_x86_64")
    files["sqlalchemy"].rename(tmp_path / built)
    assert gpu_day("--wheels", tmp_path)[0] == 0
    (tmp_path / built).rename(tmp_path / built.replace("312", "311"))
    files["optuna"].rename(tmp_path / "optuna-1-py3-none-any.whl")
    code, _, errors = gpu_day("--wheels", tmp_path)
    assert code == 1 and "cp311-cp311-manylinux_2_28_x86_64.whl is for another Python" in errors
    assert "optuna-1-py3-none-any.whl is not the version" in errors
    assert f"optuna=={wanted['optuna']}, sqlalchemy=={wanted['sqlalchemy']}: pip" in errors


def test_wheels_that_cannot_be_unpacked_are_left_out(
    day: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are: here one in two pieces, once only."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("good/__init__.py", "")
        archive.writestr("good-1.dist-info/RECORD", "")
    data = whole.getvalue()
    (tmp_path / "good-1-py3-none-any.whl.aa").write_bytes(data[:50])
    (tmp_path / "good-1-py3-none-any.whl.ab").write_bytes(data[50:])
    for name in ("cut-1-py3-none-any.whl", "old-1-cp27-none-any.whl", "unnamed.whl"):
        (tmp_path / name).write_bytes(data[:50])
    site = tmp_path / "site"
    day.wheels.unpack(tmp_path, site)
    assert sorted(path.name for path in site.iterdir()) == ["good", "good-1.dist-info"]
    errors = capsys.readouterr().err
    assert "cut-1-py3-none-any.whl cannot be unpacked" in errors and "unnamed.whl" in errors
    assert "old-1-cp27-none-any.whl is for another Python or machine: left out" in errors
    (site / "good" / "__init__.py").write_text("kept")
    day.wheels.unpack(tmp_path, site)
    assert (site / "good" / "__init__.py").read_text() == "kept"
