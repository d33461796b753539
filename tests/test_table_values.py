"""What a table computes of its rows and samples, by hand."""

from dataclasses import replace

import pytest

from latency_tables.calibration import INTERVAL_90, Calibration, Check
from latency_tables.samples import NetworkSample
from latency_tables.table import HISTORY_S, LatencyTable, Moment, Row
from supernet.errors import TableError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.operators.entries import Entry
from tests.test_model import QUIET, SIZE, SLOW, networks_of, sample
from tests.test_table import CONDITIONS, ROW, table_of


def test_a_calibration_by_hand() -> None:
    assert Calibration().predict_ms(12.0, 30) == 12.0, "without coefficients, the sum itself"
    assert Calibration(1.5, 0.25).predict_ms(12.0, 30) == pytest.approx(25.5)
    none = Calibration()
    assert none.held_out_error is None and none.covered is None


def test_checks_by_hand() -> None:
    """Errors of 20 %, -10 % and 4 %, of which two lie in their interval of 1.645 deviations."""
    checks = (Check(12.0, 0.20 / 1.6, 10.0), Check(9.0, 0.10 / 1.7, 10.0), Check(10.4, 0.04, 10.0))
    assert [round(check.error, 9) for check in checks] == [0.2, -0.1, 0.04]
    found = Calibration(1.0, 0.0, checks)
    assert found.held_out_error == pytest.approx(0.1) and found.covered == pytest.approx(2 / 3)
    alone = Calibration(1.0, 0.0, checks[1:2])
    assert alone.covered == 0.0 and alone.held_out_error == pytest.approx(0.1)
    edge = Check(2.0, 1.0 / INTERVAL_90, 1.0)
    assert INTERVAL_90 == 1.645 and Calibration(1.0, 0.0, (edge,)).covered == 1.0
    assert Calibration(1.0, 0.0, (replace(edge, sd=0.0),)).covered is None, "no interval was stated"
    wide = Calibration(1.0, 0.0, (replace(edge, sd=1.5),))
    assert wide.covered == 1.0, "deviations above 1 are deviations too"


def test_an_empty_table() -> None:
    table = LatencyTable(CONDITIONS)
    assert table.unstable == 0.0 and table.sampled == 0 and table.reference_ms == 0.0
    assert table.model is None and not table.estimated and table.base == ()


def test_shares_and_counts_of_rows(unit: Architecture) -> None:
    table = table_of(unit)
    entries = list(table.rows)
    table.rows = {
        entries[0]: replace(ROW, samples=0, reference_ms=3.0, uncertainty_ms=1.0),
        entries[1]: replace(ROW, samples=1, reference_ms=0.0),
        entries[2]: replace(ROW, samples=2, reference_ms=7.0, uncertainty_ms=1.0),
    }
    assert table.sampled == 2 and table.unstable == pytest.approx(2 / 3)
    assert table.reference_ms == 7.0, "the middle one of those that are known"
    table.rows[entries[0]] = replace(ROW, reference_ms=0.5)
    table.rows[entries[2]] = replace(ROW, reference_ms=0.25)
    assert table.reference_ms == 0.5, "a fast device's too"
    table.rows = {entries[0]: replace(ROW, uncertainty_ms=1.0)}
    assert table.unstable == 1.0
    assert table.times_ms() == {entries[0]: 0.5} and table.row(entries[0]).ms == 0.5
    assert replace(ROW, ms=1.0, uncertainty_ms=0.1).stable
    assert not replace(ROW, ms=1.0, uncertainty_ms=0.11).stable
    assert replace(ROW, ms=0.1, uncertainty_ms=0.02).stable


@pytest.mark.parametrize("source", ["estimated", "corrected"])
def test_an_estimate_has_another_name(unit: Architecture, source: str) -> None:
    table = table_of(unit)
    measured = table.name
    first = next(iter(table.rows))
    table.rows[first] = replace(ROW, source=source)
    assert table.estimated and table.name == f"{measured}-estimated"


def test_the_nearest_row_is_that_of_the_nearest_widths() -> None:
    rows = {Entry("repcnn", 8, d, d, 56, 56): ROW for d in (32, 128)}
    rows[Entry("cw", 8, 100, 100, 56, 56)] = ROW
    table = LatencyTable(CONDITIONS, rows)
    for width, nearest in ((96, 128), (48, 32), (1024, 128)):
        with pytest.raises(TableError, match=rf"nearest: repcnn {nearest}\b"):
            table.row(Entry("repcnn", 8, width, width, 56, 56))
    low, near = Entry("repcnn", 8, 32, 32, 1, 56), Entry("repcnn", 8, 32, 32, 3, 56)
    table.rows[low] = table.rows[near] = ROW
    with pytest.raises(TableError, match="nearest: repcnn 32 @8 3x56"):
        table.row(Entry("repcnn", 8, 32, 32, 2, 56))
    assert table.missing({"a": Entry("repcnn", 8, 32, 32, 56, 56)}) == []
    with pytest.raises(TableError, match="nearest: None"):
        LatencyTable(CONDITIONS).row(Entry("repcnn", 8, 32, 32, 56, 56))


def test_the_history_keeps_the_latest_300_seconds() -> None:
    table = LatencyTable(CONDITIONS)
    table.add(moments=[Moment(100.0, QUIET)] * 5)
    assert HISTORY_S == 300.0 and len(table.history) == 3
    table.add(moments=[Moment(299.0, SLOW)])
    assert [m.seconds for m in table.history] == [100.0, 299.0]
    table.add(moments=[Moment(0.5, SLOW)])
    assert [m.seconds for m in table.history] == [100.0, 299.0, 0.5]


def test_a_refitted_row_by_hand() -> None:
    """Milliseconds and deviation are the model's; provenance is that of the latest sample."""
    old, new, between = (Entry("repcnn", 8, d, d, 56, 56) for d in (32, 128, 64))
    first = replace(sample(old, 0.2), date="2026-01-01", heat="0.1.0")
    again = replace(sample(old, 0.2), date="2026-02-02", heat="0.2.0")
    last = replace(sample(new, 0.9), date="2026-03-03", heat="0.3.0")
    table = LatencyTable(SIZE)
    table.add([first, again, last])
    table.refit([between])
    model = table.model
    assert model is not None and table.base == QUIET and table.reference_ms == QUIET[0]
    for entry, samples, date, heat in (
        (old, 2, "2026-02-02", "0.2.0"), (new, 1, "2026-03-03", "0.3.0"),
        (between, 0, "2026-03-03", "0.3.0"),
    ):  # fmt: skip
        row, at = table.rows[entry], model.index[entry]
        ms, sd = float(model.times_ms[at]), float(model.entry_sd[at])
        expected = Row(
            ms, pytest.approx(1.645 * sd * ms), samples, 10.0, date, heat,
            "measured" if samples else "modelled",
        )  # fmt: skip
        assert row == expected
    assert table.sampled == 2


def test_networks_alone_give_the_base_and_the_checks() -> None:
    samples, networks = networks_of(1.2, 4)
    table = LatencyTable(SIZE)
    table.add(samples)
    table.add(networks=[replace(network, state=SLOW) for network in networks])
    assert table.base == QUIET, "samples of entries give it where there are any"
    alone = LatencyTable(SIZE)
    alone.add(networks=[NetworkSample(networks[0].architecture, 5.0, 0.01, SLOW, "2026-01-01")])
    assert alone.base == SLOW and alone.reference_ms == SLOW[0]
    quiet = LatencyTable(SIZE)
    quiet.add(samples, networks)
    quiet.refit()
    assert quiet.calibration.factor == pytest.approx(1.2, rel=0.03)
    for check, network in zip(quiet.calibration.checks, networks, strict=True):
        assert check.measured_ms == network.ms
        assert check.predicted_ms == pytest.approx(network.ms, rel=0.1)
    assert quiet.model is not None
    for check, (_, error, _) in zip(quiet.calibration.checks, quiet.model.checks, strict=True):
        assert error != 0 and check.error == pytest.approx(error)


def test_a_known_calibration_is_kept_without_networks() -> None:
    """A table whose networks are not at hand keeps the factor that they gave."""
    samples, networks = networks_of(1.0, 2)
    table = LatencyTable(SIZE, calibration=Calibration(1.3, 0.0, (Check(1.0, 0.1, 1.0),)))
    table.add(samples)
    table.refit()
    network = networks[0].architecture
    assert table.predict_ms(network) == pytest.approx(1.3 * table.sum_ms(network), rel=1e-6)
    unchecked = LatencyTable(SIZE, calibration=Calibration(1.3, 0.0))
    unchecked.add(samples)
    unchecked.refit()
    assert unchecked.predict_ms(network) != pytest.approx(table.predict_ms(network), rel=0.01)


def test_what_a_merged_table_takes_of_the_other(unit: Architecture) -> None:
    entry, other_entry = (Entry("repcnn", 8, d, d, 56, 56) for d in (32, 64))
    ours = LatencyTable(CONDITIONS, {entry: ROW}, Calibration(), None, {"seconds": {"time": 1.0}})
    theirs = table_of(unit)
    theirs.rows = {entry: replace(ROW, ms=9.0), other_entry: replace(ROW, ms=2.0)}
    theirs.facts = {"seconds": {"time": 2.0}}
    ours.merge(theirs)
    assert ours.rows[entry].ms == 0.5 and ours.rows[other_entry].ms == 2.0
    assert ours.calibration == theirs.calibration and ours.memory == theirs.memory
    assert ours.facts["seconds"] == {"time": 1.0}
    checked = replace(ours, calibration=Calibration(2.0, 0.0, (Check(1.0, 0.1, 1.0),)))
    checked.merge(theirs)
    assert checked.calibration.factor == 2.0
