"""The GPU's branches without a GPU: what a CUDA graph cannot hold, stand-ins, names, refusals.

Torch's meta device has shapes but no values, and refuses work whose shape depends on values: it
shows that a network stays on its device, not what a GPU computes (`test_gpu.py`).
"""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deploy.edge import engine
from deploy.edge.cuda import _in_packages
from deploy.edge.session import frames_of
from latency_tables.cuda_graph import CpuGraph
from latency_tables.models import ProbeNet, random_network
from latency_tables.plan import space_entries
from latency_tables.probe import machine
from latency_tables.probe.batch import feeds_of
from latency_tables.probe.setting import Setting
from latency_tables.terms import terms
from latency_tables.torch_session import TorchSession
from supernet.errors import UserError
from supernet.heatdetr.architecture import PRESETS
from supernet.train import deadline
from tests.conftest import UNIT

ELSEWHERE = "meta"
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


def test_a_plan_that_ends_a_little_late_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shorter one starts the loading processes anew: as long as the slowest first step took."""
    now = 0.0
    monkeypatch.setattr(deadline, "monotonic", lambda: now)
    found = deadline.Deadline(deadline.Budget(100.0), steps_an_epoch=5)
    found.start_epoch()
    for seconds in (5.0, 1.0, 1.0, 1.0, 1.0):
        now += seconds
        found.step()
    assert (found.left_s, found.epoch_s, found.room_s) == (91.0, 5.0, 7.0)
    assert found.fitting(1, 20) == 20 and not found.worth_reporting(1, 20, 20)  # 4 s late
    assert found.fitting(1, 21) == 19  # 9 s late


def test_a_driver_that_does_not_answer_has_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nexec sleep 60\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(engine, "DRIVER_S", 0.1)
    assert machine.detect_gpus() == () and engine.gpu_here() is None


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
