"""Whole networks timed: rounds with references, processes, what goes into the table."""

from dataclasses import replace
from pathlib import Path

import pytest

from heat.stages.measuring import NetworkMeter, measure_state, processes
from latency_tables.batch import REFERENCES, Model, NetworkResult
from latency_tables.devices import resolve
from latency_tables.machine import Disturbance
from latency_tables.measure import Job, Round, Timing, time_jobs
from latency_tables.meter import DeviceMeter
from latency_tables.store import conditions_of
from latency_tables.table import LatencyTable
from supernet.architecture import Architecture
from supernet.errors import UserError


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
    for wrong in ("0", "8", "many"):
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
    again = LatencyTable.load(table.save(tmp_path))
    assert again.conditions == conditions and again.rows == table.rows
