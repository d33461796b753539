import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from latency_tables.calibration import Calibration, Check
from latency_tables.compare import compare
from latency_tables.conditions import Conditions
from latency_tables.costs import MemoryModel, MemorySample
from latency_tables.probe.lock import only_one
from latency_tables.table import LatencyTable, Row
from latency_tables.table_file import SEAL, read_table, seal_of, write_table
from supernet.errors import TableError, UserError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.operators.entries import Entry

CONDITIONS = Conditions(
    device="box",
    model="Some CPU",
    flags="avx2 fma",
    cores=4,
    runtime="onnxruntime",
    runtime_version="1.0",
    precision="f32",
    threads=1,
    height=128,
    width=192,
    forms=1,
)
ROW = Row(0.5, 0.001, 3, 5.0, "2026-01-01", "0.1.0")


def table_of(architecture: Architecture, ms: float = 0.5) -> LatencyTable:
    rows = dict.fromkeys(architecture.entries().values(), replace(ROW, ms=ms))
    checks = (Check(2.2, 0.07, 2.0), Check(1.0, 0.01, 1.0))
    memory = MemoryModel(40.0, 3.0, 1.0, (MemorySample(10.0, 5.0, 75.0),))
    return LatencyTable(CONDITIONS, rows, Calibration(1.1, 0.0, checks), memory)


def test_prediction_is_the_calibrated_sum(unit: Architecture) -> None:
    table = table_of(unit)
    places = len(unit.entries())
    assert table.predict_ms(unit) == pytest.approx(1.1 * 0.5 * places)
    assert table.calibration.held_out_error == pytest.approx(0.05)
    assert table.calibration.covered == 1.0


def test_round_trip(unit: Architecture, tmp_path: Path) -> None:
    table = table_of(unit)
    again = read_table(write_table(table, tmp_path))
    assert again == table


def test_every_row_carries_its_conditions(unit: Architecture, tmp_path: Path) -> None:
    lines = write_table(table_of(unit), tmp_path).read_text().splitlines()
    header = lines[0].split(",")
    for column in ("device", "model", "runtime", "runtime_version", "precision", "threads",
                   "height", "width", "date", "source", "samples", "heat", "flags",
                   "cores", "quota", "governor", "driver", "clocks", "reference_ms", "spinning",
                   "pinning"):  # fmt: skip
        assert column in header
    assert all(line.count(",") == lines[0].count(",") for line in lines[1:-1])


def test_a_miss_names_the_entry_and_the_nearest(unit: Architecture) -> None:
    table = table_of(unit)
    with pytest.raises(TableError, match=r"no row for .*stem 3->96 .*nearest: stem 3->32"):
        table.predict_ms(unit.with_(widths=(96, 32, 64, 64)))


@pytest.mark.parametrize("edit", ["cut", "edited", "empty", "noseal"])
def test_damaged_tables_are_refused(unit: Architecture, tmp_path: Path, edit: str) -> None:
    path = write_table(table_of(unit), tmp_path)
    text = path.read_text()
    path.write_text(
        {
            "cut": text[: len(text) // 2],
            "edited": text.replace(",0.5,", ",0.1,", 1),
            "empty": "",
            "noseal": text.partition(SEAL)[0],
        }[edit]
    )
    with pytest.raises(TableError, match="cut short or edited"):
        read_table(path)


def test_impossible_values_are_refused(unit: Architecture, tmp_path: Path) -> None:
    for ms in (-1.0, float("nan"), float("inf")):
        with pytest.raises(TableError):
            read_table(write_table(table_of(unit, ms), tmp_path))


def test_broken_sidecar_is_refused(unit: Architecture, tmp_path: Path) -> None:
    path = write_table(table_of(unit), tmp_path)
    sidecar = path.with_suffix(".json")
    sidecar.write_text("{")
    with pytest.raises(TableError, match="cannot be read"):
        read_table(path)
    sidecar.write_text(json.dumps({"format": 99}))
    with pytest.raises(TableError, match="format 99"):
        read_table(path)
    sidecar.unlink()
    with pytest.raises(TableError, match="no table at"):
        read_table(path)


def test_other_conditions_are_refused(unit: Architecture) -> None:
    table = table_of(unit)
    for change in ({"runtime_version": "2.0"}, {"model": "Other"}, {"precision": "bf16"}):
        with pytest.raises(TableError, match="other conditions"):
            table.require(replace(CONDITIONS, **change))


def rewrite(path: Path, text: str) -> None:
    """Replace a table's text and seal it as if HEAT had written it."""
    path.write_text(f"{text}{SEAL}{seal_of(text)}\n")


def test_unknown_and_missing_columns_are_named(unit: Architecture, tmp_path: Path) -> None:
    path = write_table(table_of(unit), tmp_path)
    text = path.read_text().partition(SEAL)[0]
    rewrite(path, text.replace("uncertainty_ms", "mini_ms", 1))
    with pytest.raises(TableError, match=r"columns mini_ms, uncertainty_ms unknown or missing"):
        read_table(path)


def test_an_older_format_is_named(unit: Architecture, tmp_path: Path) -> None:
    sidecar = write_table(table_of(unit), tmp_path).with_suffix(".json")
    sidecar.write_text(json.dumps({"format": 1, "conditions": {}}))
    with pytest.raises(TableError, match="format '1', this HEAT reads 2 and 3: run heat"):
        read_table(sidecar.with_suffix(".csv"))


def test_tables_of_different_conditions_do_not_merge(unit: Architecture) -> None:
    table = table_of(unit)
    first, *others = table.rows
    half = replace(table, rows={first: ROW}, calibration=Calibration())
    half.merge(table)
    assert set(half.rows) == {first, *others} and half.rows[first] is ROW
    assert half.calibration == table.calibration
    stranger = replace(table, conditions=replace(CONDITIONS, governor="powersave"))
    with pytest.raises(TableError, match=r"do not merge.*governor powersave against unknown"):
        stranger.merge(table)


def test_rows_that_are_not_known_well_enough_are_counted(unit: Architecture) -> None:
    table = table_of(unit)
    first = next(iter(table.rows))
    assert table.unstable == 0.0
    table.rows[first] = replace(ROW, uncertainty_ms=0.06)
    assert table.unstable == pytest.approx(1 / len(table.rows))
    table.rows[first] = replace(ROW, ms=0.01, uncertainty_ms=0.015)
    assert table.unstable == 0.0, "so small that it does not matter"


def test_memory_model_never_has_negative_costs() -> None:
    samples = [MemorySample(size, 20 - size, 50 + 3 * size) for size in (2.0, 8.0, 14.0)]
    model = MemoryModel.fit(samples, [MemorySample(10.0, 10.0, 80.0)])
    assert min(model.base_mb, model.per_size, model.per_working_set) >= 0
    assert model.held_out_error == pytest.approx(0.0, abs=0.02)


def test_two_profiles_agree_at_equal_speed(unit: Architecture) -> None:
    a = table_of(unit)
    faster = {e: replace(row, ms=0.4, reference_ms=4.0) for e, row in a.rows.items()}
    b = replace(a, rows=faster)
    found = compare(a, b)
    assert found.agree and found.median_difference == pytest.approx(0.0, abs=1e-9)
    assert found.median_difference_raw == pytest.approx(0.2) and found.speed == 1.25
    slower = {e: replace(row, ms=0.6) for e, row in a.rows.items()}
    assert not compare(a, replace(a, rows=slower)).agree
    other = replace(b, conditions=replace(CONDITIONS, threads=2))
    assert not compare(a, other).agree and "threads 1 against 2" in compare(a, other).different
    with pytest.raises(TableError, match="no entry in common"):
        compare(a, replace(a, rows={}))


def test_a_full_disk_keeps_the_old_table(unit: Architecture, tmp_path: Path) -> None:
    """A file size limit stands in for the full disk: the write fails half way."""
    import resource

    path = write_table(table_of(unit), tmp_path)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, old[1]))
    try:
        with pytest.raises(UserError, match=f"cannot write {path.with_suffix('.json')}"):
            write_table(table_of(unit, ms=0.9), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert read_table(path) == table_of(unit)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".csv", ".json"]


def test_two_writers_of_one_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with (
        only_one(path),
        pytest.raises(UserError, match=rf"process {os.getpid()} \(.*, since .*\) is writing"),
        only_one(path),
    ):
        pass
    with only_one(path):
        pass


def test_entry_names_are_short() -> None:
    assert str(Entry("fuse", 16, 128, 224, 52, 84)) == "fuse 128->224 @16 52x84"
