"""Measures deployed networks on this machine, for the states that its latency table has seen."""

import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from deploy.edge.bench import Speed
from latency_tables.costs import size_mb
from latency_tables.meter import FRESH_COMMAND, DeviceMeter, network_taken
from latency_tables.models import write_network
from latency_tables.pricing import Latency, Pricing
from latency_tables.probe.fresh import peak_mb
from latency_tables.probe.records import NetworkRecord
from latency_tables.probe.setting import Model, Setting
from latency_tables.probe.timings import NetworkResult, network_from_json, network_to_json
from latency_tables.profile import absorb
from latency_tables.samples import NetworkSample
from latency_tables.store import conditions_of
from latency_tables.table import LatencyTable
from supernet.errors import UserError
from supernet.heatdetr.architecture import Architecture
from supernet.network import AnyArchitecture

from .agreement import WAIT_S, measured_latency, until_agreed
from .limits import Cost, cost_of

PROCESSES = 3
"""Processes that a network is timed in at least; HEAT_PROCESSES overrides it, 1 is quick and
rough: then they need not agree."""
MAX_PROCESSES = 7
SURE_SDS = 3.0
"""A network this many standard deviations outside its window is not timed in further processes."""
WINDOW_STEP = 0.02
"""Steps in which a latency's uncertainty is looked through for its window, which is 5 % wide."""
NOTICEABLE = 1.05
"""Share by which a machine must be slower than promised for a warning."""


def processes() -> int:
    """Return how many processes a measurement is made of."""
    asked = os.environ.get("HEAT_PROCESSES", str(PROCESSES))
    if not asked.isdecimal() or not 1 <= int(asked) <= MAX_PROCESSES:
        raise UserError(f"HEAT_PROCESSES={asked}: a whole number from 1 to {MAX_PROCESSES}")
    return int(asked)


class NetworkMeter:
    """Times whole networks and models for one table, and adds what it finds to the table."""

    def __init__(self, table: LatencyTable) -> None:
        """Keep the table; the runtime is opened when something is measured."""
        self.table = table
        self._meter: DeviceMeter | None = None

    def meter(self) -> DeviceMeter:
        """Open the runtime once."""
        if self._meter is None:
            # What a network executes was checked with its table, or is with its artefact.
            self._meter = DeviceMeter(self.table.conditions, check=False)
        return self._meter

    def results(
        self, model: Model, architecture: Architecture, enough: Callable[[Latency], bool]
    ) -> list[NetworkResult]:
        """Time a model in processes of its own until they agree, or `enough` is true."""
        needed = processes()
        return until_agreed(
            lambda: self.meter().time(model),
            lambda results: self.latency(architecture, results),
            needed=needed,
            most=MAX_PROCESSES if needed > 1 else 1,
            enough=enough,
            wait=lambda: time.sleep(WAIT_S),
        )

    def latency(self, architecture: Architecture, results: Sequence[NetworkResult]) -> Latency:
        """Return a measured network's latency over the table's states.

        Without a table the states are those of the results.
        """
        table = self.table
        if table.model is not None and table.missing(architecture.entries()):
            table.refit(architecture.entries().values())
        if table.model is None:
            table = table.copy()
            for result in results:
                taken = network_taken(architecture, result)
                table.add(networks=taken.networks, moments=taken.moments)
        return measured_latency(Pricing(table), architecture, samples_of(architecture, results))

    def take_in(self, architecture: Architecture, results: Sequence[NetworkResult]) -> None:
        """Add what was timed to the table.

        The states that the promise is about stay those of the table: a target must not move while
        it is aimed at.
        """
        for result in results:
            taken = network_taken(architecture, result)
            if taken.networks[0] not in self.table.networks:  # a journal may be read again
                absorb(self.table, replace(taken, moments=()) if self.table.history else taken)
        self.table.refit()


class Reading(TypedDict):
    """A measured network, as the journal keeps it."""

    results: list[NetworkRecord]
    size_mb: float
    peak_mb: float | None


def samples_of(architecture: Architecture, results: Sequence[NetworkResult]) -> list[NetworkSample]:
    """Return timings of a network as samples."""
    return [network_taken(architecture, result).networks[0] for result in results]


def measure_state(
    meter: NetworkMeter,
    architecture: Architecture,
    inside: Callable[[Latency], bool],
    *,
    memory: bool,
    journal: Callable[[Callable[[], Any]], Any] = lambda take: take(),
) -> Cost:
    """Measure a network with random weights and a busy head; memory too, if asked.

    A network that is clearly outside its window is timed in one process only. What was timed goes
    into the table. `journal` keeps the timings across a kill.
    """

    def take() -> Reading:
        setting = meter.table.conditions.setting
        model = write_network(architecture, setting)

        def enough(latency: Latency) -> bool:
            room = SURE_SDS * max(latency.sd, 0.01)
            steps = math.ceil(room / WINDOW_STEP)
            factors = [1 + room * step / steps for step in range(-steps, steps + 1)]
            return not any(
                inside(replace(latency, sustained_ms=latency.sustained_ms * factor))
                for factor in factors
            )

        found = meter.results(model, architecture, enough)
        peak = None
        if memory and model.onnx:  # torch deploys no file
            peak = peak_mb(model, setting, FRESH_COMMAND)
        size = len(model.onnx) / 2**20 if model.onnx else size_mb(architecture)
        return {"results": [network_to_json(r) for r in found], "size_mb": size, "peak_mb": peak}

    kept = journal(take)
    results = [network_from_json(record) for record in kept["results"]]
    meter.take_in(architecture, results)
    latency = measured_latency(
        Pricing(meter.table), architecture, samples_of(architecture, results)
    )
    tail = statistics.median(r.timing.p95_ms / r.timing.ms for r in results)
    peak = math.nan if kept["peak_mb"] is None else kept["peak_mb"]
    cost = cost_of(latency, kept["size_mb"], peak, tail)
    return replace(cost, fps_now=1000.0 / statistics.median(r.ms for r in results))


def measure_network(architecture: Architecture, setting: Setting) -> Cost:
    """Measure a network where there is no table: over the states of the measurement itself."""
    meter = NetworkMeter(_no_table(setting, architecture.input_size))
    return measure_state(meter, architecture, lambda latency: True, memory=False)


def file_model(path: Path, input_size: tuple[int, int]) -> Model:
    """Return a deployed file as what is timed: it takes one image."""
    return Model(b"", {"image": ((1, *input_size, 3), "uint8")}, file=path)


def measure_bundle(
    model: Path,
    architecture: AnyArchitecture,
    setting: Setting,
    table: LatencyTable | None,
    results: list[NetworkResult],
) -> Speed:
    """Measure an exported model file, over the states of its table if it has one.

    What is timed is added to `results`, and all of them count: measuring again must not mean
    choosing. What no table knows the parts of (a DETR) is reported as it was.
    """
    deployed = file_model(model, architecture.input_size)
    meter = NetworkMeter(table or _no_table(setting, architecture.input_size))
    if architecture.family != "heatdetr":
        for _ in range(processes()):
            results.append(meter.meter().time(deployed))
        middle = sorted(results, key=lambda result: result.ms)[len(results) // 2]
        return Speed(middle.ms, middle.ms, middle.timing.p95_ms)
    results += meter.results(deployed, architecture, lambda latency: False)
    latency = meter.latency(architecture, results)
    return Speed(
        ms=latency.sustained_ms,
        p50_ms=statistics.median(result.ms for result in results),
        p95_ms=statistics.median(result.timing.p95_ms for result in results),
        best_ms=latency.best_ms,
    )


def _no_table(setting: Setting, size: tuple[int, int]) -> LatencyTable:
    from latency_tables.devices import resolve

    target = resolve("cpu" if setting.device == "cpu" else "cuda", runtime=setting.runtime)
    target = replace(
        target,
        threads=setting.threads,
        precision=setting.precision,
        spinning=setting.spinning,
        pinning=setting.pinning,
    )
    return LatencyTable(conditions_of(target, size))


def warn_if_slower(speed: Speed) -> None:
    """Warn where the machine is at the moment slower than the sustained speed of its table."""
    if speed.p50_ms > NOTICEABLE * speed.ms:
        print(
            f"warning: at this moment it runs at {1000 / speed.p50_ms:.2f} FPS: this machine is "
            f"slower than the {speed.fps:.2f} FPS that its table says it sustains; heat profile "
            "measures anew",
            file=sys.stderr,
        )
