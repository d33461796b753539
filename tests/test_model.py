"""The latency table as a model: samples with states in, estimates with uncertainty out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heat.spaces import search_space
from heat.thinning.aims import chain_networks
from heat.thinning.moves import prior_logits
from latency_tables.calibration import Calibration
from latency_tables.columns import entry_columns
from latency_tables.families import family
from latency_tables.model import LatencyModel
from latency_tables.plan import (
    check_networks,
    contradictions,
    design,
    entries_sd,
    first_entries,
    next_entries,
    space_entries,
)
from latency_tables.pricing import Pricing
from latency_tables.samples import EntrySample, NetworkSample, base_state, slowness
from latency_tables.table import LatencyTable, Moment
from latency_tables.table_file import read_table, seal_of, write_table
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.operators.entries import Entry
from tests.test_table import CONDITIONS

QUIET = (10.0, 3.0, 1.0, 0.1)
SLOW = (14.0, 4.2, 1.4, 0.14)
SPACE = search_space("large", input_size=(448, 448), num_classes=80)
SIZE = replace(CONDITIONS, height=448, width=448)
NOISY = Path(__file__).resolve().parents[2] / "shared" / "cases" / "noisy-table"


def chain_of(width: int) -> Entry:
    return Entry("repcnn", 8, width, width, 56, 56)


def true_ms(width: int) -> float:
    return 0.2 * (width / 32) ** 1.9


def sample(entry: Entry, ms: float, state: tuple[float, ...] = QUIET) -> EntrySample:
    return EntrySample(entry, ms, 0.01 * abs(ms), state, "2026-01-01", "0.1.0")


def model_of(samples: list[EntrySample], networks: list[NetworkSample] | None = None,
             entries: list[Entry] | None = None) -> LatencyModel:  # fmt: skip
    return LatencyModel(entries or [], samples, networks or [], QUIET)


def ms_of(model: LatencyModel, entry: Entry) -> tuple[float, float]:
    at = model.index[entry]
    return float(model.times_ms[at]), float(model.entry_sd[at])


def test_widths_between_samples_are_estimated_with_more_uncertainty() -> None:
    timed = [32, 96, 192, 320]
    entries = [chain_of(width) for width in range(32, 353, 32)]
    model = model_of([sample(chain_of(w), true_ms(w)) for w in timed], entries=entries)
    for width in range(32, 353, 32):
        ms, sd = ms_of(model, chain_of(width))
        assert ms == pytest.approx(true_ms(width), rel=0.06)
        assert (sd < 0.02) == (width in timed)


def test_one_disturbed_timing_gives_way_to_its_neighbours_and_a_true_step_does_not() -> None:
    """The disturbance is contradicted; a step that three timings repeat is kept."""
    widths = range(32, 353, 32)
    quiet = [sample(chain_of(w), true_ms(w)) for w in widths if w != 192]
    once = model_of([*quiet, sample(chain_of(192), 1.5 * true_ms(192))])
    assert contradictions(once)[0] == chain_of(192)
    ms, _ = ms_of(once, chain_of(192))
    assert ms < 1.25 * true_ms(192)
    thrice = model_of([*quiet, *[sample(chain_of(192), 1.5 * true_ms(192))] * 3])
    kept, _ = ms_of(thrice, chain_of(192))
    assert kept > 1.35 * true_ms(192)
    calm = model_of([*quiet, sample(chain_of(192), 1.5 * true_ms(192)),
                     *[sample(chain_of(192), true_ms(192))] * 2])  # fmt: skip
    mended, _ = ms_of(calm, chain_of(192))
    assert mended == pytest.approx(true_ms(192), rel=0.05)


def test_timings_of_a_slower_state_are_taken_to_the_base() -> None:
    """Every second timing is from a state that is slower by 40 %."""
    samples = [
        sample(chain_of(w), true_ms(w) * (1.4 if i % 2 else 1.0), SLOW if i % 2 else QUIET)
        for i, w in enumerate(range(32, 353, 32))
    ]
    model = model_of(samples)
    for width in range(32, 353, 32):
        assert ms_of(model, chain_of(width))[0] == pytest.approx(true_ms(width), rel=0.05)


def test_a_family_has_its_own_sensitivity() -> None:
    """Where memory is slow and computing is not, a family that follows memory is seen to."""
    starved = (10.0, 3.0, 2.0, 0.1)
    samples = [sample(chain_of(w), true_ms(w)) for w in range(32, 353, 32)]
    samples += [sample(chain_of(w), 1.6 * true_ms(w), starved) for w in range(32, 353, 32)]
    model = model_of(samples)
    counts = np.zeros(len(model.entries))
    counts[model.index[chain_of(96)]] = 1
    slow = model.network_slowdowns(counts, [QUIET, starved])
    assert slow[0] == pytest.approx(1.0) and slow[1] == pytest.approx(1.6, rel=0.1)


def test_slowness_and_base_by_hand() -> None:
    assert base_state([QUIET, SLOW, SLOW]) == SLOW
    found = slowness([QUIET, (5.0,)], QUIET)
    assert found[0] == pytest.approx(0.0)
    assert found[1] == pytest.approx(np.log(0.5)), "a lone reference tells of the others too"


def networks_of(factor: float, count: int) -> tuple[list[EntrySample], list[NetworkSample]]:
    """Return exact entries, and networks that take `factor` times their sum."""
    drawn = check_networks(SPACE.template, SPACE.widths, SPACE.positions, count)
    entries = sorted({e for network in drawn for e in network.entries().values()})
    rng = np.random.default_rng(0)
    levels: dict[str, float] = {}
    times = {}
    for entry in entries:
        level = levels.setdefault(family(entry), float(np.exp(rng.normal(0, 0.3))))
        times[entry] = level * 1e-3 * (entry.d_out + 8) * (entry.h * entry.w) ** 0.5
    networks = [
        NetworkSample(
            network,
            factor * sum(times[e] for e in network.entries().values()),
            0.005,
            QUIET,
            "2026-01-01",
        )
        for network in drawn
    ]
    return [sample(entry, ms) for entry, ms in times.items()], networks


def test_whole_networks_set_the_factor_and_are_predicted_without_themselves() -> None:
    samples, networks = networks_of(1.08, 8)
    model = model_of(samples, networks)
    assert model.factor == pytest.approx(1.08, abs=0.02)
    assert max(abs(error) for _, error, _ in model.checks) < 0.02
    assert all(0.005 < sd < 0.1 for _, _, sd in model.checks)


def test_a_measured_network_corrects_those_like_it_most() -> None:
    samples, networks = networks_of(1.0, 9)
    known, last = networks[:8], networks[8]
    model = model_of(samples, known)
    dear = replace(last, ms=1.06 * last.ms)
    corrected = model_of(samples, [*known, dear, dear])

    def change(network: Architecture) -> float:
        before = model.predict(model.counts(network.entries())).ms
        return corrected.predict(corrected.counts(network.entries())).ms / before - 1

    near = last.architecture.with_(blocks=last.architecture.blocks)
    assert change(near) > 0.035
    far = max(known, key=lambda net: net.ms if net.ms > 2 * last.ms else 1 / net.ms)
    assert abs(change(far.architecture)) < 0.6 * change(near)
    certain = corrected.predict(corrected.counts(near.entries())).sd
    assert certain < model.predict(model.counts(near.entries())).sd


def test_the_first_entries_cover_every_family() -> None:
    entries = space_entries(SPACE.template, SPACE.widths, oa=True)
    first = first_entries(entries)
    assert {family(e) for e in first} == {family(e) for e in entries} and len(first) < 110
    targets = check_networks(SPACE.template, SPACE.widths, SPACE.positions, 6)
    planned = design(entries, targets, 160)
    assert len(set(planned)) == 160 and set(first) <= set(planned)


def test_what_is_timed_next_makes_networks_certain() -> None:
    samples, _ = networks_of(1.0, 12)
    targets = check_networks(SPACE.template, SPACE.widths, SPACE.positions, 12)
    entries = [s.entry for s in samples]
    truth = {s.entry: s for s in samples}
    known = [truth[entry] for entry in first_entries(entries)]
    model = model_of(known, entries=entries)
    before = entries_sd(model, targets)
    chosen = next_entries(model, entries, targets, {s.entry: 3 for s in known})
    assert len(set(chosen)) == 24 and not set(chosen) & {s.entry for s in known}
    rng = np.random.default_rng(1)
    others = [entry for entry in entries if entry not in {s.entry for s in known}]
    drawn = [others[i] for i in rng.choice(len(others), 24, replace=False)]
    after, by_chance = (
        entries_sd(model_of([*known, *(truth[e] for e in some)], entries=entries), targets)
        for some in (chosen, drawn)
    )
    assert after < by_chance < before


def table_with(history: list[Moment]) -> tuple[LatencyTable, Architecture]:
    samples, networks = networks_of(1.0, 4)
    table = LatencyTable(SIZE)
    table.add(samples, networks, history)
    table.refit()
    return table, networks[0].architecture


def test_what_is_sustained_is_kept_for_nine_tenths_of_the_time() -> None:
    steady, network = table_with([Moment(1.0, QUIET)] * 20)
    found = Pricing(steady).latency(network)
    assert found.best_ms == pytest.approx(found.typical_ms) == pytest.approx(found.sustained_ms)
    for slow_s, slower in ((5.0, False), (20.0, True)):
        moments = [Moment(1.0, QUIET)] * 95 + [Moment(slow_s, SLOW)]
        table, network = table_with(moments)
        price = Pricing(table).latency(network)
        assert price.typical_ms == pytest.approx(found.typical_ms, rel=0.01)
        share = price.sustained_ms / price.typical_ms
        assert share == pytest.approx(1.4 if slower else 1.0, rel=0.02)


def test_a_table_keeps_its_samples_and_its_history(tmp_path: Path) -> None:
    table, network = table_with([Moment(0.123456789, QUIET), Moment(1.0, SLOW)])
    again = read_table(write_table(table, tmp_path))
    assert again == table
    assert again.predict_ms(network) == pytest.approx(table.predict_ms(network))
    table.add(moments=[Moment(200.0, SLOW), Moment(200.0, QUIET)])
    assert [m.seconds for m in table.history] == [200.0, 200.0], "the latest 300 s"
    copy = table.copy()
    copy.add(networks=table.networks[:1])
    assert len(copy.networks) == len(table.networks) + 1


def test_a_table_of_version_two_is_read(tmp_path: Path) -> None:
    """Its measured rows become samples; factor and overhead stay."""
    path = old_table(tmp_path)
    table = read_table(path)
    assert len(table.samples) == 11 and table.calibration.factor == 1.1
    assert {row.source for row in table.rows.values()} == {"measured"}
    for width in range(32, 353, 32):
        assert table.rows[chain_of(width)].ms == pytest.approx(true_ms(width), rel=0.05)
    again = read_table(write_table(table, tmp_path / "new"))
    assert again.rows == table.rows and again.calibration == table.calibration


def old_table(folder: Path) -> Path:
    """Write a table as version 2 did."""
    import json
    from dataclasses import asdict

    import pandas as pd

    rows = []
    conditions = {k: v for k, v in asdict(SIZE).items() if k not in ("spinning", "pinning")}
    for width in range(32, 353, 32):
        ms = true_ms(width)
        old = dict(ms=ms, min_ms=ms, uncertainty_ms=0.03 * ms, spread=0.01, n=12, reference_ms=10.0,
                   date="2026-01-01", heat="0.1.0", source="measured")  # fmt: skip
        rows.append(entry_columns(chain_of(width)) | old | conditions)
    text = pd.DataFrame(rows).to_csv(index=False)
    path = folder / f"{SIZE.stem}.csv"
    path.write_text(f"{text}# sha256={seal_of(text)}\n")
    held_out = [{"sum_ms": 10.0, "entries": 5, "measured_ms": 11.2}]
    sidecar = {
        "format": 2,
        "conditions": conditions,
        "calibration": {"factor": 1.1, "overhead_ms": 0.01, "anchors": [], "held_out": held_out},
        "memory": None,
        "facts": {},
    }
    path.with_suffix(".json").write_text(json.dumps(sidecar))
    return path


def test_the_noisy_table_of_a_shared_machine() -> None:
    """A row of another state is higher than its neighbour in width: no wall, and no floor."""
    if not NOISY.is_dir():
        pytest.skip("the noisy table is not beside this checkout")
    table = read_table(next(NOISY.glob("*.csv")))
    for op, strides in (("t1_cw", (32,)), ("ffn1", (16,)), ("repcnn", (8, 16, 32, 64))):
        for stride in strides:
            rows = sorted((e.d_in, r.ms) for e, r in table.rows.items()
                          if (e.op, e.stride) == (op, stride))  # fmt: skip
            assert [ms for _, ms in rows] == sorted(ms for _, ms in rows)
    wider = [(e, replace(e, d_in=e.d_in + 32, d_out=e.d_out + 32)) for e in table.rows]
    pairs = [(a, b) for a, b in wider if a.d_in == a.d_out and b in table.rows]
    assert len(pairs) > 200
    assert all(table.rows[b].ms > 0.98 * table.rows[a].ms for a, b in pairs)
    chain = chain_networks(table, SPACE, prior_logits(SPACE))
    price = Pricing(table)
    fps = [1000.0 / price.latency(network).sustained_ms for network in chain]
    assert max(fps) > 24.0 and fps[-1] > 55.0
    assert chain[-1].widths == (32, 32, 32, 32), "the chain ends at the smallest network"


def test_a_timing_of_few_doubts_is_found_by_its_own_noise() -> None:
    """Widening a contradicted sample's noise must not hide the contradiction."""
    rng = np.random.default_rng(0)
    noisy = [
        replace(sample(chain_of(w), true_ms(w) * float(np.exp(rng.normal(0, 0.05)))),
                sd_ms=0.05 * true_ms(w))
        for w in range(32, 353, 32)
    ]  # fmt: skip
    noisy[5] = replace(noisy[5], ms=1.8 * true_ms(192))
    assert contradictions(model_of(noisy))[:1] == [chain_of(192)]


def test_a_network_is_predicted_without_any_of_its_timings() -> None:
    """Further timings of one network do not make its error smaller."""
    samples, networks = networks_of(1.0, 6)
    odd = replace(networks[0], ms=1.1 * networks[0].ms)
    once = LatencyModel([], samples, [odd, *networks[1:]], QUIET)
    often = LatencyModel([], samples, [odd, odd, odd, odd, *networks[1:]], QUIET)
    assert len(once.checks) == len(often.checks) == 6
    assert abs(often.checks[0][1]) > 0.8 * abs(once.checks[0][1]) > 0.04


def test_the_same_results_are_merged_once() -> None:
    table, _ = table_with([Moment(1.0, QUIET)])
    before = len(table.samples), len(table.networks), len(table.history)
    table.merge(table.copy())
    assert (len(table.samples), len(table.networks), len(table.history)) == before


def test_samples_do_not_depend_on_the_rows_beside_them(tmp_path: Path) -> None:
    """A sidecar beside rows of another save, as after a kill, keeps its samples' entries."""
    table, _ = table_with([Moment(1.0, QUIET)])
    path = write_table(table, tmp_path / "a")
    wider = table.copy()
    wider.refit([Entry("repcnn", 8, 512, 512, 56, 56), Entry("cw", 8, 32, 32, 1, 1)])
    write_table(wider, tmp_path / "b")
    (tmp_path / "b" / path.name).replace(path)
    assert read_table(path).samples == table.samples


def test_a_mixed_table_of_version_two_keeps_its_rows(tmp_path: Path) -> None:
    """An estimate corrected by a few measured rows is not refitted from those few."""
    path = old_table(tmp_path)
    text = path.read_text().partition("# sha256=")[0]
    mixed = text.replace("measured,", "corrected,", 3)
    path.write_text(f"{mixed}# sha256={seal_of(mixed)}\n")
    table = read_table(path)
    assert table.estimated and not table.samples and len(table.rows) == 11
    assert table.model is None


def test_old_states_count_beside_new_ones() -> None:
    """Moments with one reference, as version 2 has, are not dropped when four are watched."""
    table, network = table_with(
        [Moment(100.0, (14.0,)), Moment(100.0, (10.0,)), Moment(8.0, QUIET)]
    )
    price = Pricing(table).latency(network)
    assert price.sustained_ms > 1.3 * price.typical_ms


def test_a_known_calibration_is_the_prior_of_a_table_without_networks() -> None:
    samples, _ = networks_of(1.0, 2)
    model = LatencyModel([], samples, [], QUIET, Calibration(1.2, 0.01))
    assert model.factor == pytest.approx(1.2) and model.overhead_ms == pytest.approx(0.01)
