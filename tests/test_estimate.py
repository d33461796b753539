import math
from dataclasses import replace
from pathlib import Path

import pytest

from heat.spaces import search_space
from heat.stages import estimate
from heat.stages.estimate import leave_one_out
from latency_tables.conditions import Conditions
from latency_tables.device_file import Figures, find_device, load_device
from latency_tables.devices import declared, resolve
from latency_tables.estimate import corrected, entry_errors, estimated_table, spread_entries
from latency_tables.plan import space_entries
from latency_tables.published import correction_for
from latency_tables.roofline import Efficiencies, ideal_parts, node_count
from latency_tables.store import SHIPPED
from latency_tables.table_file import read_table, write_table
from supernet.errors import DeviceError, TableError
from supernet.heatdetr.architecture import GLOBAL_KINDS, Architecture, GlobalBlock, HeadKind, preset
from supernet.heatdetr.operators.entries import Entry
from tests.command_line import run

TEMPLATE = Architecture(widths=(64, 64, 64, 64), blocks=("RWS",) * 4, input_size=(128, 192))
ENTRIES = space_entries(TEMPLATE, TEMPLATE.widths, oa=True)


def figures() -> Figures:
    found = find_device("amd-epyc").figures
    assert found is not None
    return found


def test_the_parts_of_a_roofline_by_hand() -> None:
    target = declared("amd-epyc", threads=1)
    entry = Entry("repcnn", 8, 64, 64, 10, 20)
    compute, memory, launch = ideal_parts(entry, figures(), target.setting)
    assert compute == pytest.approx(2 * 9 * 64 * 64 * 200 / (576.0 / 2) / 1e6)
    maps, weights = 2 * 64 * 200 * 4 / (240.0 / 2), (9 * 64 * 64 + 64) * 4 / 80.0
    assert memory == pytest.approx((maps + weights) / 1e6)
    assert launch == pytest.approx(node_count(replace(entry, d_in=32, d_out=32)) * 5 / 1e3)
    with pytest.raises(DeviceError, match=r"no figure for int8: --precision f32, f16"):
        ideal_parts(entry, find_device("v100").figures, replace(target.setting, precision="int8"))  # type: ignore[arg-type]


def test_a_fit_finds_the_coefficients() -> None:
    true = Efficiencies({e.op: (1.7, 2.5, 0.8) for e in ENTRIES}, (), {})
    target = declared("amd-epyc", threads=2)
    table = estimated_table(target, TEMPLATE.input_size, ENTRIES, true)
    fitted = Efficiencies.fit([(table, figures())])
    again = estimated_table(target, TEMPLATE.input_size, ENTRIES, fitted)
    assert max(entry_errors(again, table.times_ms())) < 1e-6
    assert all(min(parts) >= 0 for parts in fitted.coefficients.values())


def test_every_estimated_row_says_so(tmp_path: Path) -> None:
    table = estimated_table(declared("v100"), TEMPLATE.input_size, ENTRIES, Efficiencies.load())
    assert table.estimated and {row.source for row in table.rows.values()} == {"estimated"}
    assert table.conditions.runtime_version == "estimated" and table.conditions.device == "v100"
    text = write_table(table, tmp_path).read_text()
    assert text.count("estimated") >= len(table.rows)
    assert "source" in table.facts["estimate"]["figures"]
    assert table.facts["estimate"]["error"]["other_runtime"] > 0
    assert read_table(tmp_path / f"{table.name}.csv").estimated


def test_few_measured_rows_correct_an_estimate() -> None:
    efficiencies = Efficiencies.load()
    target = declared("amd-epyc", threads=1)
    guess = estimated_table(target, TEMPLATE.input_size, ENTRIES, efficiencies)
    factors = {op: 2.0 + 0.1 * index for index, op in enumerate(sorted({e.op for e in ENTRIES}))}
    rows = {
        entry: replace(row, ms=row.ms * factors[entry.op], source="measured")
        for entry, row in guess.rows.items()
    }
    real = replace(guess, rows=rows)
    chosen = spread_entries(ENTRIES, 10)
    assert len({entry.op for entry in chosen}) == 10
    few = {entry: real.rows[entry] for entry in chosen}
    better = corrected(guess, few)
    truth = real.times_ms()
    before, after = (sum(entry_errors(t, truth)) for t in (guess, better))
    assert after < 0.4 * before
    assert {row.source for row in better.rows.values()} == {"corrected", "measured"}
    off, on = leave_one_out(guess, replace(real, rows=few))
    assert on < off
    with pytest.raises(TableError, match="no measured row"):
        corrected(guess, {})


def test_few_measured_rows_are_measured_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """--spinning and --pinning were left out on this machine."""
    asked = replace(resolve("cpu", threads=1), spinning="never", pinning=True)
    space = search_space("micro", input_size=(96, 128), num_classes=2)
    measured = []

    def meter(conditions: Conditions) -> None:
        measured.append(conditions)
        raise DeviceError("nothing is measured here")

    monkeypatch.setattr(estimate, "DeviceMeter", meter)
    with pytest.raises(DeviceError, match="nothing is measured here"):
        estimate._measure(asked, space, [], None, "python3")
    assert measured[0].setting == asked.setting


def test_the_papers_frame_rates_predict_each_other() -> None:
    """Table 2: 25.2, 24.3, 23.5 and 20.5 FPS, DETR-R50 24, on a V100 in torch."""
    target = declared("v100", runtime="torch", precision="f32")
    assert target.device.figures is not None
    found = correction_for(target, target.device.figures, Efficiencies.load())
    assert len(found.points) == 5 and max(map(abs, found.errors)) < 0.05
    assert 0.5 < found.factor < 2 and 15 < found.overhead_ms < 35
    network = preset("large", input_size=(800, 1344), global_block="oa")
    entries = network.entries().values()
    table = estimated_table(target, (800, 1344), entries, Efficiencies.load())
    assert 1000 / table.predict_ms(network) == pytest.approx(20.5, rel=0.03)
    facts = table.facts["estimate"]["published"]
    assert facts is not None and "Table 2" in facts["sources"][0] and len(facts["points"]) == 5


def test_one_published_time_is_not_predicted_by_others() -> None:
    """Its error was NaN, which is no JSON."""
    target = declared("v100", runtime="torch", precision="f32")
    assert target.device.figures is not None
    alone = replace(target, device=replace(target.device, published=target.device.published[:1]))
    found = correction_for(alone, target.device.figures, Efficiencies.load())
    facts = found.facts()
    assert facts is not None and facts["leave_one_out"] == {} and found.factor > 0


def test_another_runtimes_overhead_is_not_taken_over() -> None:
    """Published times of torch say how fast the GPU computes, not what TensorRT costs a frame."""
    efficiencies = Efficiencies.load()
    torch_f32 = declared("v100", runtime="torch", precision="f32")
    trt_f32 = declared("v100", runtime="tensorrt", precision="f32")
    trt_f16 = declared("v100")
    figures_v100 = torch_f32.device.figures
    assert figures_v100 is not None
    own, other, half = (
        correction_for(target, figures_v100, efficiencies)
        for target in (torch_f32, trt_f32, trt_f16)
    )
    assert other.factor == own.factor and other.overhead_ms == 0 < own.overhead_ms
    assert {point.runtime for point in half.points} == {"tensorrt"}
    nothing = correction_for(declared("cpu-i7"), figures(), efficiencies)
    assert (nothing.factor, nothing.overhead_ms, nothing.facts()) == (1.0, 0.0, None)
    frame, conv = Entry("preprocess", 1, 3, 3, 8, 8), Entry("repcnn", 8, 32, 32, 8, 8)
    assert own.ms(frame, 1.0) == own.factor + own.overhead_ms and own.ms(conv, 1.0) == own.factor


@pytest.mark.parametrize(
    ("line", "message"),
    [("fps = 3", "unknown key 'fps'"), ("", "source missing"), ("source = 'x'", None)],
)
def test_published_times_of_a_device_file(line: str, message: str | None, tmp_path: Path) -> None:
    path = tmp_path / "box.toml"
    path.write_text(
        "title='x'\nkind='cpu'\nruntime='onnxruntime'\nprecision='f32'\n"
        f"[[published]]\nnetwork='n'\nms=1.0\nruntime='torch'\nprecision='f32'\n{line}\n"
    )
    if message is None:
        (point,) = load_device(path).published
        assert (point.network, point.ms, point.batch) == ("n", 1.0, 1)
        return
    with pytest.raises(DeviceError, match=message):
        load_device(path)


def test_a_device_without_figures_cannot_be_estimated() -> None:
    with pytest.raises(DeviceError, match="cpu has no published figures"):
        estimated_table(declared("cpu", threads=2), (64, 96), [], Efficiencies.load())


def test_shipped_tables_are_complete() -> None:
    """Four estimates, and the measured table of one machine."""
    tables = [read_table(path) for path in sorted(SHIPPED.glob("*.csv"))]
    estimated = {t.conditions.device for t in tables if t.estimated}
    assert estimated == {"v100", "gtx-1080ti", "cpu-i7", "cpu-i7-dual"}
    assert any(not t.estimated for t in tables)
    for table in tables:
        assert len(table.rows) == 766 and table.conditions.input_size == (448, 448)
        assert all(math.isfinite(ms) for ms in table.times_ms().values())
        if not table.estimated:
            assert table.calibration.held_out_error is not None


@pytest.mark.parametrize("block", GLOBAL_KINDS)
@pytest.mark.parametrize("head", ["nms", "voted", "one-to-one"])
def test_every_global_block_and_head_can_be_estimated(
    block: GlobalBlock, head: HeadKind, tmp_path: Path
) -> None:
    """It ended in a KeyError for what no table has measured."""
    size = ["--space", "micro", "--input-size", "96x128", "--head", head]
    asked = ["--device", "v100", "--estimate", *size, "--global-block", block, "--out", tmp_path]
    code, found, errors = run("profile", *asked)
    assert code == 0 and found["source"] == "estimated", errors
    named = "act is on no measured table: estimated by the coefficients of oa" in errors
    assert named == (block != "cw")
    assert ("top_k is on no measured table" in errors) == (head == "one-to-one")
    table = read_table(Path(found["table"]))
    assert all(row.source == "estimated" and row.ms >= 0 for row in table.rows.values())
    nearest = table.facts["estimate"]["not_fitted"]
    assert nearest.get("t1_pool") == (None if block == "cw" else "t1_oa")
    out = ("--trust-table", "--out", tmp_path)
    code, thinned, errors = run("thin", "--target-fps", 50, *out)
    assert code == 0 and thinned["source"] == "estimated", errors


def test_an_operator_without_coefficients_is_named() -> None:
    with pytest.raises(TableError, match="no coefficients for the operator swmsa: measure it"):
        Efficiencies({"oa": (1.0, 1.0, 1.0)}, (), {}).fitted("swmsa")
