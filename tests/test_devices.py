"""Which machine this is, by what name, and what device files say."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deploy.edge.cpu import model_name
from deploy.edge.engine import seen_by_cuda
from heat.commands.find import find_space, thin_target
from heat.spaces import search_space
from heat.workspace import Workspace
from latency_tables.conditions import Conditions
from latency_tables.device_file import load_device, load_devices
from latency_tables.devices import declared, name_of, names_of, resolve
from latency_tables.probe.machine import (
    Detected,
    Gpu,
    cpu_quota,
    detect_cpu,
    parse_gpus,
    slug,
)
from latency_tables.store import conditions_of, find_table, open_table
from latency_tables.table import LatencyTable
from latency_tables.table_file import write_table
from supernet.errors import DeviceError, TableError


@pytest.mark.parametrize("version", [1, 2])
def test_cpu_quota(tmp_path: Path, version: int) -> None:
    assert cpu_quota(tmp_path) is None
    if version == 2:
        (tmp_path / "cpu.max").write_text("150000 100000\n")
    else:
        (tmp_path / "cpu").mkdir()
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("150000\n")
        (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_quota(tmp_path) == 1.5


def test_gpus_are_read_from_nvidia_smi() -> None:
    """The line is made up: no GPU is at hand."""
    (gpu,) = parse_gpus("NVIDIA H200, 570.10, 345, 1980, 3201, 143771\n[N/A]\n")
    assert gpu == Gpu("NVIDIA H200", "570.10", "1980 MHz, memory 3201 MHz", "345 MHz", 143771)
    cpu = detect_cpu()
    assert name_of(load_devices()["h200"], cpu, [gpu]) == ("h200", gpu)
    assert name_of(load_devices()["cuda"], cpu, [gpu]) == ("nvidia-h200", gpu)
    with pytest.raises(DeviceError, match=r"this machine has NVIDIA H200.*--estimate"):
        name_of(load_devices()["v100"], cpu, [gpu])


def test_one_of_several_gpus_has_to_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPUs are made up. A table of one could be measured on the other."""
    lines = (
        "Tesla V100, 570.10, 135, 1530, 877, 16384\nNVIDIA H200, 570.10, 345, 1980, 3201, 143771"
    )
    with pytest.raises(DeviceError, match=r"has Tesla V100, NVIDIA H200.*CUDA_VISIBLE_DEVICES"):
        name_of(load_devices()["h200"], detect_cpu(), parse_gpus(lines))
    twice = parse_gpus("\n".join(lines.splitlines()[:1] * 2))
    assert name_of(load_devices()["v100"], detect_cpu(), twice)[0] == "v100"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f1b")
    assert seen_by_cuda() == ["-i", "GPU-8f1b"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert seen_by_cuda() == []  # CUDA's 1 may be nvidia-smi's 0
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert seen_by_cuda() == ["-i", "1"]


def test_device_files() -> None:
    devices = load_devices()
    assert {"cpu", "cpu-i7", "cpu-i7-dual", "v100", "gtx-1080ti"} <= set(devices)


def test_unknown_and_absent_devices_say_what_to_do() -> None:
    with pytest.raises(DeviceError, match=r"unknown device 'toaster': one of .*cpu-i7.*"):
        resolve("toaster")
    with pytest.raises(DeviceError, match=r"v100 needs an NVIDIA Tesla V100.*--host.*--device cpu"):
        resolve("v100")
    with pytest.raises(DeviceError, match="--threads 0"):
        resolve("cpu", threads=0)
    with pytest.raises(DeviceError, match="--threads 4096"):
        resolve("cpu", threads=4096)


def test_a_machine_is_named_as_what_it_is() -> None:
    def named(model: str, device: str) -> str:
        facts = Detected(model, 2, None, "unknown", (), 1000)
        return name_of(load_devices()[device], facts, [])[0]

    i7 = "Intel(R) Core(TM) i7-8700K CPU @ 3.70GHz"
    assert named(i7, "cpu-i7") == "cpu-i7"
    assert named(i7, "cpu") == "intel-core-i7-8700k"
    other = "AMD EPYC 9555 64-Core Processor"
    assert named(other, "cpu-i7") == "amd-epyc-9555-64-core"
    assert named("AMD EPYC (family 26, model 2)", "amd-epyc") == "amd-epyc"
    assert named("AMD EPYC (family 25, model 1)", "amd-epyc") == "amd-epyc-family-25-model-1"
    target = resolve("cpu-i7")
    assert target.threads <= target.detected.cores
    if "i7" not in detect_cpu().model:
        assert target.name != "cpu-i7" and "named as" in target.warnings[0]


@pytest.mark.parametrize(
    ("cpuinfo", "model", "name"),
    [
        (
            "cpu family\t: 6\nmodel\t\t: 158\n"
            "model name\t: Intel(R) Core(TM) i7-8700K CPU @ 3.70GHz\n",
            "Intel(R) Core(TM) i7-8700K CPU @ 3.70GHz",
            "intel-core-i7-8700k",
        ),
        (
            "cpu family\t: 6\nmodel\t\t: 85\nmodel name\t: Intel(R) Xeon(R) CPU @ 2.20GHz\n",
            "Intel(R) Xeon(R) CPU @ 2.20GHz (family 6, model 85)",
            "intel-xeon-family-6-model-85",
        ),
        (
            "cpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n",
            "AMD EPYC (family 26, model 2)",
            "amd-epyc-family-26-model-2",
        ),
        (
            "Features\t: fp asimd\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n",
            "Raspberry Pi 4 Model B Rev 1.4",
            "raspberry-pi-4-model-b-rev-1-4",
        ),
        (
            "model name\t: ARMv7 Processor rev 4 (v7l)\nModel\t\t: Raspberry Pi 3 Model B\n",
            "Raspberry Pi 3 Model B",
            "raspberry-pi-3-model-b",
        ),
        (
            "model name\t: ARMv8 Processor rev 1 (v8l)\nCPU implementer\t: 0x41\n"
            "CPU part\t: 0xd42\n",
            "ARMv8 Processor rev 1 (v8l) (implementer 0x41, part 0xd42)",
            "armv8-rev-1-v8l-implementer-0x41-part-0xd42",
        ),
        ("model name\t: AMD EPYC 7B12\n", "AMD EPYC 7B12", "amd-epyc-7b12"),
        (
            "cpu family\t: 6\nmodel\t\t: 85\nmodel name\t: Intel Xeon Processor (Skylake, IBRS)\n",
            "Intel Xeon Processor (Skylake, IBRS) (family 6, model 85)",
            "intel-xeon-skylake-ibrs-family-6-model-85",
        ),
        (
            "cpu family\t: 6\nmodel name\t: \nmodel\t\t: 85\n",
            "aarch64 (family 6, model 85)",
            "aarch64-family-6-model-85",
        ),
    ],
)
def test_machines_that_hide_their_number_are_told_apart(
    cpuinfo: str, model: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert model_name(cpuinfo) == model
    assert slug(model) == name


def test_a_shipped_table_is_found_by_any_name_of_its_cpu(tmp_path: Path) -> None:
    """Only where it is trusted: it was measured before CPUs had these names."""
    cpu = Detected("AMD EPYC (family 26, model 2)", 2, None, "unknown", (), 1000)
    target = replace(resolve("cpu", threads=1), name=cpu.slug, detected=cpu)
    assert names_of(target) == ["amd-epyc-family-26-model-2", "amd-epyc"]
    found = find_table(tmp_path, target, (448, 448), trust=True)
    assert found is not None and found.name == "amd-epyc-onnxruntime-f32-t1-448x448.csv"
    assert find_table(tmp_path, target, (448, 448)) is None


def test_a_trusted_table_of_this_machine_is_measured_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was profiled as the device that it is; trusted is a change of its conditions."""
    workspace = Workspace(tmp_path)
    asked: dict[str, Any] = {"device": None, "runtime": None, "threads": 1, "precision": None}
    find = partial(thin_target, workspace, **asked, input_size=(64, 96), trust=True)
    last = {"requested": "cpu-i7", "device": "cpu-i7", "here": True, "runtime": "onnxruntime"}
    workspace.record("profile", last)
    table = LatencyTable(conditions_of(declared("cpu-i7", threads=1), (64, 96)))
    write_table(table, workspace.tables)
    assert not find().here  # an i7's table, and this is none
    i7 = Detected("Intel(R) Core(TM) i7-8700 CPU @ 3.20GHz", 6, None, "powersave", (), 16000)
    monkeypatch.setattr("latency_tables.devices.detect_cpu", lambda: i7)
    assert find().here and find().name == "cpu-i7"


def test_a_table_of_another_machine_says_what_measures_this_one(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for requested, measures in (("cpu", "heat profile"), ("cpu-i7", "--device cpu")):
        far = {"requested": requested, "device": "pi", "here": False, "source": "measured"}
        workspace.record("profile", far)
        said = rf"of {requested} is measured, .* {measures} measures this machine$"
        with pytest.raises(TableError, match=said):
            thin_target(workspace, None, None, None, None, (64, 96), trust=False)


def test_a_bare_arm_machine_is_named_by_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    found = model_name("CPU implementer\t: 0x41\nCPU part\t: 0xd40\n")
    assert found == "aarch64 (implementer 0x41, part 0xd40)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = 3\nkindd = 'cpu'\n", "unknown key 'kindd'"),
        ("title = 'x'\n", "kind, precision, runtime missing"),
        ("title = ", "is no device file"),
        ("title='x'\nkind='gpu'\nruntime='a'\nprecision='f32'", "kind = 'gpu': one of cpu, cuda"),
        ("title='x'\nkind='cpu'\nruntime='a'\nprecision='fp32'", "precision = 'fp32': one of"),
        ("title='x'\nkind='cpu'\nruntime='a'\nprecision='f32'\npattern='('", r"pattern = '\('"),
        (
            "title='x'\nkind='cpu'\nruntime='a'\nprecision='f32'\n[figures]\npeak_gflop=1",
            "unknown key 'peak_gflop'",
        ),
    ],
)
def test_a_typo_in_a_device_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(DeviceError, match=rf"bad\.toml.*{message}"):
        load_device(path)


def test_a_declared_device_is_not_here() -> None:
    target = declared("v100")
    assert target.name == "v100" and not target.here and target.gpu is not None
    with pytest.raises(TableError, match=r"no table v100-tensorrt-f16-t1-64x96\.csv.*--estimate"):
        open_table(Path("nowhere"), target, (64, 96))


def test_a_table_of_other_graphs_is_stale_for_a_device_that_is_not_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = declared("v100")
    then = Conditions.of(target.name, target.detected, target.gpu, target.setting, "1", (64, 96))
    table = LatencyTable(replace(then, forms=1))
    write_table(table, tmp_path)
    with pytest.raises(TableError, match=r"\(forms \d+ against 1\): run heat profile again"):
        open_table(tmp_path, target, (64, 96))
    assert open_table(tmp_path, target, (64, 96), trust=True).borrowed
    assert "in spite of forms" in capsys.readouterr().err


def test_a_member_of_a_fleet_knows_the_fleets_space(tmp_path: Path) -> None:
    """It took the largest space, and measured a table of it."""
    fleet = Workspace(tmp_path)
    space = search_space("mini", input_size=(256, 320), num_classes=3)
    fleet.record("profile", {"space": space.to_dict()})
    member = fleet.member("door")
    member.record("thin", {})
    assert find_space(Workspace(member.root), None, None, None) == space
