"""Whole networks timed: rounds with references, processes, what goes into the table."""

from dataclasses import replace
from pathlib import Path

import pytest

from heat.spaces import search_space
from heat.thinning.filling import lacks
from heat.thinning.measuring import NetworkMeter, measure_state, processes
from latency_tables.devices import resolve
from latency_tables.meter import DeviceMeter, moments_of, network_taken
from latency_tables.plan import LAZY, Checks, space_entries
from latency_tables.probe.machine import Disturbance
from latency_tables.probe.measure import Job, Round, Timing, time_jobs
from latency_tables.probe.setting import REFERENCES, Model
from latency_tables.probe.timings import NetworkResult
from latency_tables.samples import EntrySample
from latency_tables.store import conditions_of
from latency_tables.table import LatencyTable
from latency_tables.table_file import read_table, write_table
from supernet.errors import UserError
from supernet.heatdetr.architecture import Architecture


def test_references_are_timed_in_every_round_and_are_not_waited_for() -> None:
    class Model:
        def __init__(self, times: list[float]) -> None:
            self.times = times
            self.visits = 0

        def run(self, inputs: object) -> list[object]:
            return []

        def timed(self, inputs: object) -> float:
            self.visits += 1
            return self.times[self.visits % len(self.times)]

    steady, shaky = Model([1.0]), Model([1.0, 2.0])
    watched: list[Round] = []
    time_jobs(
        {"own": Job(steady, {}), "reference": Job(shaky, {})},
        references=("reference",),
        rounds=3,
        watched=watched,
    )
    assert len(watched) == 3, "the reference alone is not stable: no further round"
    assert all(seen.reference_ms == {"reference": 1.5} for seen in watched)


def test_a_network_outside_its_window_is_timed_once(
    monkeypatch: pytest.MonkeyPatch, unit: Architecture
) -> None:
    """One inside is timed in three that agree, or in up to seven; HEAT_PROCESSES=1 takes one."""
    asked: list[float] = []
    times = [10.0, 10.1, 10.05]
    meter = NetworkMeter(LatencyTable(conditions_of(resolve("cpu", threads=1), unit.input_size)))

    class Stand:
        def time(self, model: Model) -> NetworkResult:
            ms = times[len(asked) % 3]
            asked.append(ms)
            return result_of(ms)

    monkeypatch.setattr(meter, "_meter", Stand())
    monkeypatch.setenv("HEAT_PROCESSES", "3")
    cost = measure_state(meter, unit, lambda found: found.sustained_ms < 11.0, memory=False)
    assert len(asked) == 3 and 1000.0 / cost.typical_fps == pytest.approx(10.05, rel=0.02)
    assert len(meter.table.networks) == 3
    measure_state(meter, unit, lambda found: found.sustained_ms < 5.0, memory=False)
    assert len(asked) == 4
    times[:] = [10.0, 10.4, 10.1]
    measure_state(meter, unit, lambda found: found.sustained_ms < 11.0, memory=False)
    assert len(asked) == 4 + 7, "processes that do not agree are repeated"
    monkeypatch.setenv("HEAT_PROCESSES", "1")
    measure_state(meter, unit, lambda found: found.sustained_ms < 11.0, memory=False)
    assert len(asked) == 12
    for wrong in ("²", "0", "8", "many"):
        monkeypatch.setenv("HEAT_PROCESSES", wrong)
        with pytest.raises(UserError, match=f"HEAT_PROCESSES={wrong}"):
            processes()


def result_of(ms: float) -> NetworkResult:
    """Return a network's timing on a steady machine."""

    def timing(of: float) -> Timing:
        return Timing(of, of, of * 1.1, 0.0, 12, 0.01)

    references = {name: timing(5.0) for name in REFERENCES}
    rounds = tuple(Round(0.1, dict.fromkeys(REFERENCES, 5.0)) for _ in range(12))
    return NetworkResult(timing(ms), references, rounds, Disturbance(0, 0, 0, 0), 0.0, 0.0)


@pytest.mark.parametrize(("spinning", "pinning"), [("always", False), ("never", True)])
def test_how_threads_wait_is_part_of_the_table(
    tmp_path: Path, unit: Architecture, spinning: str, pinning: bool
) -> None:
    """Another way to wait is another table; the meter runs models in that way."""
    plain = resolve("cpu", threads=1)
    target = replace(plain, spinning=spinning, pinning=pinning)
    conditions = conditions_of(target, unit.input_size)
    assert conditions.stem != conditions_of(plain, unit.input_size).stem
    assert conditions.setting == target.setting
    taken = DeviceMeter(conditions).entries([unit.entries()["s1_0"]])
    table = LatencyTable(conditions)
    table.add(taken.samples, (), taken.moments)
    table.refit()
    again = read_table(write_table(table, tmp_path))
    assert again.conditions == conditions and again.rows == table.rows


def test_a_table_models_the_entries_of_another_class_count(unit: Architecture) -> None:
    """An export of a network with other classes than its table was measured with is timed."""
    table = LatencyTable(conditions_of(resolve("cpu", threads=1), unit.input_size))
    table.add(
        (), [network_taken(unit, result_of(10.0)).networks[0]], moments_of(result_of(9.0).rounds)
    )
    table.refit()
    other = unit.with_(num_classes=7)
    found = NetworkMeter(table).latency(other, [result_of(11.0)])
    assert found.typical_ms == pytest.approx(11.0, rel=0.01)


def test_an_uncertain_timing_is_not_clearly_outside_its_window(
    monkeypatch: pytest.MonkeyPatch, unit: Architecture
) -> None:
    """The window is narrower than the doubt of one timing: it is looked through in small steps."""
    meter = NetworkMeter(LatencyTable(conditions_of(resolve("cpu", threads=1), unit.input_size)))
    asked: list[float] = []

    class Shaky:
        def time(self, model: Model) -> NetworkResult:
            asked.append(10.0)
            result = result_of(10.0)
            return replace(result, timing=replace(result.timing, interval=0.2))

    monkeypatch.setattr(meter, "_meter", Shaky())
    monkeypatch.setenv("HEAT_PROCESSES", "3")
    measure_state(meter, unit, lambda found: 9.3 <= found.sustained_ms <= 9.7, memory=False)
    assert len(asked) >= 3


def test_a_table_lacks_what_none_of_its_samples_is_of(unit: Architecture) -> None:
    space = search_space("micro", input_size=(128, 192), num_classes=3)
    table = LatencyTable(conditions_of(resolve("cpu", threads=1), (128, 192)))
    assert lacks(table, space, LAZY)
    entries = space_entries(space.template, space.widths, oa=True)
    table.add(
        [EntrySample(entry, 1.0, 0.01, (5.0,), "", "") for entry in entries if entry.op != "oa"],
        [network_taken(space.template, result_of(10.0)).networks[0]],
    )
    assert lacks(table, space, LAZY), "no sample of original attention"
    table.add([EntrySample(e, 1.0, 0.01, (5.0,), "", "") for e in entries if e.op == "oa"])
    assert not lacks(table, space, LAZY)
    assert lacks(table, space, Checks()), "a full table has more networks"
