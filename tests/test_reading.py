"""`heat profile --show`, and tables that people read."""

from dataclasses import replace
from pathlib import Path

from latency_tables.devices import resolve
from latency_tables.store import conditions_of
from latency_tables.table import LatencyTable, Row
from supernet.architecture import Architecture
from tests.command_line import run


def test_a_machine_without_a_device_file_is_shown(tmp_path: Path, unit: Architecture) -> None:
    """It was drawn, and then refused as an unknown device."""
    here = conditions_of(resolve("cpu", runtime="onnxruntime", threads=1), (128, 192))
    rows = dict.fromkeys(unit.entries().values(), Row(0.5, 0.0, 3, 5.0, "2026-01-01", "0.1"))
    LatencyTable(replace(here, device="other-box"), rows).save(tmp_path / "tables")
    code, found, errors = run("profile", "--show", "other-box", "--out", tmp_path)
    assert code == 0, errors
    assert len(found["pictures"]) == 1 and Path(found["pictures"][0]).exists()
    assert found["stacks"] == {}
