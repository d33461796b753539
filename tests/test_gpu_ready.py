"""The GPU's branches without a GPU: what a CUDA graph cannot hold, stand-ins, names, refusals.

Torch's meta device has shapes but no values, and refuses work whose shape depends on values: it
shows that a network stays on its device, not what a GPU computes (`test_gpu.py`).
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deploy.edge.cuda import _in_packages
from deploy.edge.session import frames_of
from latency_tables.cuda_graph import CpuGraph
from latency_tables.models import ProbeNet, random_network
from latency_tables.plan import space_entries
from latency_tables.probe.batch import feeds_of
from latency_tables.probe.setting import Setting
from latency_tables.terms import terms
from latency_tables.torch_session import TorchSession
from supernet.errors import UserError
from supernet.heatdetr.architecture import PRESETS
from tests.conftest import UNIT

ELSEWHERE = "meta"
GPU_DAY = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu_day.py"
IMAGE = {"image": ((1, *UNIT.input_size, 3), "uint8")}


class NothingFromTheHost(TorchDispatchMode):
    """Refuses copies between devices: a CUDA graph cannot be recorded across one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {x.device.type for x in (*args, result) if isinstance(x, torch.Tensor)}
        scalars = [x for x in args if isinstance(x, torch.Tensor) and not x.dim()]
        assert len(devices) < 2 or scalars, f"{func} works across {devices}"
        return result


def record_elsewhere(net: Any, shapes: Any, dtype: torch.dtype) -> None:
    """Run a network as `TorchSession` does before and in the recording of its CUDA graph."""
    units = net.units.to(ELSEWHERE, dtype)
    inputs = [
        torch.empty(shape, dtype=getattr(torch, kind), device=ELSEWHERE)
        for shape, kind in shapes.values()
    ]

    def call(name: str, *values: Any) -> Any:
        if name == "decode":
            return values
        return units[name](*(x.to(dtype) if x.is_floating_point() else x for x in values))

    with torch.inference_mode():
        net.wire(call, *inputs)  # a warm-up, which may bring constants to the device
        with NothingFromTheHost():
            outputs = net.wire(call, *inputs)
    parts = outputs if isinstance(outputs, tuple | list) else [outputs]
    assert {part.device.type for part in parts} == {ELSEWHERE}


@pytest.mark.parametrize("op", sorted({e.op for e in space_entries(UNIT, UNIT.widths, oa=True)}))
def test_every_probe_can_be_recorded(op: str) -> None:
    entry = next(e for e in space_entries(UNIT, UNIT.widths, oa=True) if e.op == op)
    for probe in terms(entry):
        net = ProbeNet(probe)
        record_elsewhere(net, net.shapes(), torch.float16)


@pytest.mark.parametrize("block", ["cw", "oa"])
@pytest.mark.parametrize("name", ["unit", *PRESETS])
def test_every_preset_can_be_recorded(name: str, block: str) -> None:
    chosen = UNIT if name == "unit" else PRESETS[name].with_(input_size=(128, 192))
    net = random_network(chosen.with_(global_block=block)).deployed()
    record_elsewhere(net, {"image": ((1, 128, 192, 3), "uint8")}, torch.bfloat16)


def test_a_copy_from_the_host_is_noticed() -> None:
    """The check above can fail."""

    class Net:
        units = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2)})

        def wire(self, call: Any, x: torch.Tensor) -> torch.Tensor:
            return call("a", x) + torch.ones(2).to(x)

    with pytest.raises(AssertionError, match="works across"):
        record_elsewhere(Net(), {"x": ((1, 2), "float32")}, torch.float32)


def test_recorded_work_reads_its_inputs_where_they_are() -> None:
    """By the stand-in of CUDA graphs: the same outputs as without, also for the next image."""
    setting = Setting(runtime="torch", precision="f32", threads=1)
    network = random_network(UNIT)
    feeds = feeds_of(IMAGE)
    other = {"image": 255 - feeds["image"]}
    with (
        TorchSession(network.deployed(), setting) as plain,
        TorchSession(network.deployed(), setting, CpuGraph) as recorded,
    ):
        for given in (feeds, other, feeds):
            for one, two in zip(plain.run(given), recorded.run(given), strict=True):
                np.testing.assert_array_equal(one, two)


def test_torch_has_no_int8() -> None:
    """A way that was checked after "out of reach" ended in a KeyError."""
    setting = Setting(runtime="torch", precision="int8", threads=1)
    with pytest.raises(UserError, match="torch runs f32, f16, bf16, not int8"):
        TorchSession(random_network(UNIT).deployed(), setting)


def test_feature_maps_are_not_copied_in_each_timed_run() -> None:
    """In a network they come from the operator before, on the GPU."""
    feeds = {"image": np.zeros((1, 2, 2, 3), np.uint8), "x0": np.zeros((1, 2), np.float32)}
    assert list(frames_of(feeds)) == ["image"]


def test_cuda_is_found_in_python_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `pip install nvidia-cuda-runtime` lays it."""
    for name in ("cu13", "cuda_runtime"):
        folder = tmp_path / "nvidia" / name / "lib"
        folder.mkdir(parents=True)
        (folder / f"libcudart.so.{13 if name == 'cu13' else 12}").touch()
    (tmp_path / "nvidia" / "__init__.py").touch()  # before that of packages that are installed
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    assert [Path(path).name for path in _in_packages()] == ["libcudart.so.12", "libcudart.so.13"]


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


def test_a_failed_stage_stops_no_other(rehearsed: tuple[Path, list[dict[str, Any]]]) -> None:
    """Its data are missing; what was done before is kept, and the reason is said."""
    out, _ = rehearsed
    code, lines, _ = gpu_day(
        "--rehearse", "--again", "--only", "training,here", "--data", "nowhere", "--out", out
    )
    assert code == 1
    assert [line["state"] for line in lines] == ["done", "failed"]
    assert "nowhere" in lines[1]["why"]
    assert json.loads((out / "nccl.json").read_text())["state"] == "done"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_nothing_is_started(tmp_path: Path) -> None:
    code, lines, _ = gpu_day("--out", tmp_path / "day")
    assert code == 1
    assert {line["why"] for line in lines} == {"not started: no GPU (nvidia-smi lists none)"}
    code, lines, _ = gpu_day("--out", tmp_path / "day", "--minutes", 0.05)
    assert re.match(r"not started: [23] s are left, it needs 3", lines[0]["why"])


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
    assert lines[0]["why"].startswith("not started: no GPU")
    kept = json.loads((tmp_path / "day" / "here.json").read_text())
    assert kept["gpus"][0]["model"] == "Tesla V100" and kept["state"] == "failed"


def test_a_missing_wheel_is_named(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("gpu_day", GPU_DAY)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_day"] = module
    spec.loader.exec_module(module)
    (tmp_path / "table.log").write_text("ModuleNotFoundError: No module named 'optuna'\n")
    assert "carry optuna==" in module.last_line(tmp_path, "table")
    assert module.last_line(tmp_path, "race") == "no output"


def test_wheels_are_listed_and_weighed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(GPU_DAY), "--wheels"], capture_output=True, text=True, check=True
    )
    names = [line.partition("==")[0] for line in done.stdout.split()]
    assert "optuna" in names and "torch" not in names
    for name in names:
        (tmp_path / f"{name.replace('-', '_')}-1-py3-none-any.whl").write_bytes(b"x")
    assert gpu_day("--wheels", tmp_path)[0] == 0
    (tmp_path / "optuna-1-py3-none-any.whl").unlink()
    code, _, errors = gpu_day("--wheels", tmp_path)
    assert code == 1 and "missing" in errors and "optuna" in errors


def test_another_gpus_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that is here gets its own name, never another's; the card is made up."""
    from latency_tables import devices
    from latency_tables.probe.machine import Gpu
    from supernet.errors import DeviceError

    card = Gpu("NVIDIA H200", "580.1", "1980 MHz, memory 3201 MHz", "345 MHz", 143771)
    monkeypatch.setattr(devices, "detect_gpus", lambda: (card,))
    target = devices.resolve("cuda", runtime="torch", threads=1, precision="f16")
    assert target.name == "nvidia-h200" and target.setting.device == "cuda"
    assert devices.resolve("h200", runtime="torch", threads=1).name == "h200"
    with pytest.raises(DeviceError, match="needs an NVIDIA Tesla V100, this machine has NVIDIA"):
        devices.resolve("v100")
    other = replace(card, driver="590.2", clocks="1200 MHz, memory 3201 MHz")
    monkeypatch.setattr(devices, "detect_gpus", lambda: (other,))
    from latency_tables.store import conditions_of

    mine = conditions_of(target, (64, 96))
    theirs = conditions_of(
        devices.resolve("cuda", runtime="torch", threads=1, precision="f16"), (64, 96)
    )
    differences = mine.differences(theirs)
    assert "driver 580.1 against 590.2" in differences and "clocks 1980 MHz" in differences


def test_a_bundle_that_runs_on_the_cpu_is_not_for_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime measured the GPU, and the bundle ran on the CPU; the card is made up."""
    from heat.stages.export import Wish, export
    from heat.workspace import Workspace
    from latency_tables import devices
    from latency_tables.probe.machine import Gpu
    from supernet.errors import UserError

    card = Gpu("NVIDIA H200", "580.1", "1980 MHz, memory 3201 MHz", "345 MHz", 143771)
    monkeypatch.setattr(devices, "detect_gpus", lambda: (card,))
    target = devices.resolve("cuda", runtime="onnxruntime", threads=1, precision="f32")
    with pytest.raises(UserError, match=r"--format onnx: .* --format tensorrt, or --device cpu"):
        export(Workspace(tmp_path), target, Wish())
