import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from heat import doctor
from heat.doctor import Finding, examine, graphics, processor, telemetry
from heat.workspace import Workspace
from latency_tables.devices import find_device, resolve
from latency_tables.probe.machine import Detected, Gpu
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


def test_telemetry_of_openvino_is_shown(tmp_path: Path) -> None:
    consent = tmp_path / "openvino_telemetry"
    assert telemetry(consent).seen == "nobody was asked"
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
