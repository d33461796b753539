"""`heat profile --show`, and tables that people read."""

from dataclasses import replace
from pathlib import Path

import pytest

from deploy.side_by_side import Lap
from heat.views.charts import draw_race
from heat.views.tables import describe_architecture, print_race
from latency_tables.devices import resolve
from latency_tables.store import conditions_of
from latency_tables.table import LatencyTable, Row
from latency_tables.table_file import write_table
from supernet.heatdetr.architecture import Architecture
from tests.command_line import run

STRANGE = ("[/x]", "car [small]", ":car:", "$x^{$")
"""Names that are markup, emoji or mathematics elsewhere."""


def test_a_machine_without_a_device_file_is_shown(tmp_path: Path, unit: Architecture) -> None:
    """It was drawn, and then refused as an unknown device."""
    here = conditions_of(resolve("cpu", runtime="onnxruntime", threads=1), (128, 192))
    rows = dict.fromkeys(unit.entries().values(), Row(0.5, 0.0, 3, 5.0, "2026-01-01", "0.1"))
    write_table(LatencyTable(replace(here, device="other-box"), rows), tmp_path / "tables")
    code, found, errors = run("profile", "--show", "other-box", "--out", tmp_path)
    assert code == 0, errors
    assert len(found["pictures"]) == 1 and Path(found["pictures"][0]).exists()
    assert found["stacks"] == {}


def test_names_are_printed_as_they_are(
    unit: Architecture, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = ("p50_ms", "p95_ms", "p99_ms", "fps", "times_first", "peak_mb", "start_ms")
    how = {"runtime": "onnxruntime", "precision": "f32", "threads": 1}
    print_race([{"model": name, **how, **dict.fromkeys(numbers, 1.0)} for name in STRANGE])
    shown = capsys.readouterr().err
    assert all(name in shown for name in STRANGE)
    laps = [Lap(name, 1.0, 2.0, 3.0, (1.0,), 5, 1.0, 1.0) for name in STRANGE]
    assert draw_race(laps, "title", tmp_path / "race.svg").exists()
    describe_architecture(unit.with_(name="[/x] :car:"))
    assert "[/x] :car:" in capsys.readouterr().err
