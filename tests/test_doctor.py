import importlib.metadata
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from heat.stages import doctor
from heat.stages.doctor import Finding, examine, graphics, processor, show, telemetry
from heat.workspace import Workspace
from latency_tables import device_file
from latency_tables.device_file import find_device, load_devices
from latency_tables.devices import resolve
from latency_tables.probe.machine import Detected, Gpu, detect_cpu
from latency_tables.store import conditions_of
from latency_tables.table import LatencyTable, Row
from latency_tables.table_file import write_table
from supernet.heatdetr.architecture import Architecture
from tests.command_line import fails, run


def levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.what: finding.level for finding in findings}


def test_this_machine_is_fit(tmp_path: Path) -> None:
    code, found, errors = run("doctor", "--out", tmp_path)
    assert code == 0 and found["wrong"] == 0, errors
    seen = {finding["what"]: finding for finding in found["findings"]}
    for what in ("torch", "onnxruntime runs", "openvino runs"):
        assert seen[what]["level"] == "ok" and what in errors
    assert all(finding["fix"] for finding in found["findings"] if finding["level"] != "ok")
    assert "unknown device" in fails(2, "doctor", "--device", "toaster", "--out", tmp_path)


@pytest.mark.parametrize(
    ("device", "version", "level"),
    [
        ("v100", "10.4.0", "ok"),
        ("v100", "11.1.0", "wrong"),
        ("gtx-1080ti", "10.0.1", "wrong"),
        ("gtx-1080ti", "8.6.1", "ok"),
        ("gtx-1080ti", None, "warning"),
    ],
)
def test_a_tensorrt_that_builds_nothing_for_a_gpu(
    device: str, version: str | None, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "installed_runtimes", lambda: {"tensorrt": version})
    asked = levels(list(graphics((), find_device(device))))
    assert asked["TensorRT"] == level
    gpu = Gpu({"v100": "Tesla V100-SXM2", "gtx-1080ti": "GTX 1080 Ti"}[device], "1", "", "", 1)
    assert levels(list(graphics((gpu,), None)))["TensorRT"] == level


def test_something_wrong_is_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    code, found, errors = run("doctor", "--out", tmp_path)
    assert code == 2 and found["wrong"] == 1
    assert "run.json cannot be read" in errors.splitlines()[-1]


def test_the_gpu_package_of_a_runtime_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its advice was to install the CPU's package over it, into the same folder."""
    there = {"onnxruntime-gpu": "1.27.0"}

    def version(name: str) -> str:
        if name not in there:
            raise importlib.metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    wanted = Requirement("onnxruntime>=1.26")
    assert doctor._package(wanted, "edge") == Finding("onnxruntime", "ok", "1.27.0")
    there["onnxruntime-gpu"] = "1.2.0"
    assert doctor._package(wanted, "edge").fix == "pip install 'onnxruntime-gpu>=1.26'"


def test_telemetry_of_openvino_is_shown(tmp_path: Path) -> None:
    consent = tmp_path / "openvino_telemetry"
    never = telemetry(consent)
    assert never.level == "ok" and "not declined" in never.seen and never.fix
    consent.write_text("0")
    assert telemetry(consent).level == "ok"
    consent.write_text("1")
    assert telemetry(consent).fix == "opt_in_out --opt_out"


def test_what_makes_timings_unsteady(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "WATCHED_S", 0.0)
    cpu = Detected("Some CPU", 8, 1.5, "powersave", (), 1000)
    found = levels(list(processor(cpu)))
    assert found["CPU quota"] == found["governor"] == found["CPU"] == "warning"
    steady = replace(cpu, quota=None, governor="performance", flags=("avx2",))
    assert {"CPU quota", "governor"}.isdisjoint(levels(list(processor(steady))))


def test_tables_that_no_longer_serve(tmp_path: Path, unit: Architecture) -> None:
    here = conditions_of(resolve("cpu", threads=1), (128, 192))
    rows = dict.fromkeys(unit.entries().values(), Row(0.5, 0.0, 3, 5.0, "2026-01-01", "0.1"))
    for conditions in (
        here,
        replace(here, runtime_version="0.0.1", precision="bf16"),
        replace(here, device="other-box"),
    ):
        write_table(LatencyTable(conditions, rows), tmp_path / "tables")
    findings = [found for found in examine(Workspace(tmp_path)) if found.what == "table"]
    by_level = {found.level: found.seen for found in findings}
    assert len(findings) == 3 and set(by_level) == {"ok", "warning"}
    assert "stale: runtime_version" in by_level["warning"]
    (tmp_path / "tables" / f"{here.stem}.json").write_text("{")
    findings = [found for found in examine(Workspace(tmp_path)) if found.what == "table"]
    assert "wrong" in {found.level for found in findings}


def test_an_edge_install_has_a_doctor_too(tmp_path: Path) -> None:
    program = (
        "import sys\nfor name in ('torch', 'pandas', 'onnx'): sys.modules[name] = None\n"
        f"from heat.cli import main\nsys.exit(main(['doctor', '--out', {str(tmp_path)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["wrong"] == 0


def test_a_table_named_after_a_device_file_is_of_this_machine(
    tmp_path: Path, unit: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken for another machine's, and its staleness never reported."""
    mine = replace(
        find_device("cpu-i7"), name="my-box", pattern=f"^{re.escape(detect_cpu().model)}$"
    )
    other = replace(mine, name="your-box", pattern="^no such model$")
    known = {**load_devices(), "my-box": mine, "your-box": other}
    for module in (doctor, device_file):
        monkeypatch.setattr(module, "load_devices", lambda: known)
    here = conditions_of(resolve("my-box", runtime="onnxruntime", threads=1), (128, 192))
    assert here.device == "my-box"
    rows = dict.fromkeys(unit.entries().values(), Row(0.5, 0.0, 3, 5.0, "2026-01-01", "0.1"))
    estimates = dict.fromkeys(rows, replace(rows[next(iter(rows))], source="estimated"))
    cores = detect_cpu().cores
    for conditions, found in (
        (here, rows),
        (replace(here, spinning="always", pinning=True), rows),
        (replace(here, precision="bf16", runtime_version="0.0.1"), rows),
        (replace(here, threads=cores + 1), rows),
        (replace(here, device="your-box"), rows),
        (replace(here, device="my-box", runtime_version="estimated"), estimates),
    ):
        write_table(LatencyTable(conditions, found), tmp_path / "tables")
    findings = [found for found in examine(Workspace(tmp_path)) if found.what == "table"]
    seen = {found.seen.removeprefix(here.stem): found for found in findings}
    assert len(seen) == 6
    levels_of = {text: found.level for text, found in seen.items()}
    assert levels_of[""] == levels_of["-estimated: ESTIMATED, not measured"] == "ok"
    warned = sorted(text for text, level in levels_of.items() if level == "warning")
    assert len(warned) == 2
    assert any("stale: runtime_version 1" in text for text in warned), warned
    fixes = {found.fix for found in findings if found.level == "warning"}
    assert fixes == {
        f"heat profile --device my-box --runtime onnxruntime {how} --input-size 128x192"
        for how in ("--precision bf16 --threads 1", f"--threads {cores}")
    }
    assert any(f"threads {cores + 1}, this machine gives {cores}" in text for text in warned)
    assert [text for text in seen if text.endswith("another machine")] == [
        text for text in seen if text.startswith("your-box")
    ]


def test_what_is_shown_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    show([Finding("[/x]", "ok", ":car: [small]", "[/y]")])
    shown = capsys.readouterr().err
    assert "[/x]" in shown and ":car: [small]" in shown and "[/y]" in shown
