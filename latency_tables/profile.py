"""Fills a latency table by measuring on this machine, batch by batch, and calibrates it."""

import datetime
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

from supernet.architecture import Architecture, Entry
from supernet.errors import DeviceError, UserError
from supernet.progress import Progress
from supernet.version import __version__

from .batch import BatchResult, Bench, Model, NetworkResult, precision_of
from .calibration import Sample, calibrated
from .conditions import Conditions
from .costs import MemoryModel, MemorySample, size_mb, working_set_mb
from .drift import same_state, scale_to
from .fresh import peak_mb, time_network
from .machine import Disturbance
from .measure import MAX_ROUNDS
from .models import write, write_network
from .networks import reference_architecture
from .plan import Checks, batches_of, check_networks
from .probes import terms
from .table import LatencyTable, Row

HELD_OUT_EVERY = 4
"""Of the networks whose memory is measured, every fourth only checks the memory model."""

STATE_PASSES = 2
"""How often what was measured in another state of the machine is measured again."""
STATE_WAIT_S = 3.0
"""Pause before that."""

FRESH_COMMAND = (sys.executable, "-m", "latency_tables.fresh")
"""Starts a process of its own for a whole network."""


def open_bench(conditions: Conditions) -> Bench:
    """Load the reference network in the table's runtime, and see what precision it executes.

    Raises `DeviceError` where that is not the precision asked for.
    """
    setting = conditions.setting
    reference = reference_architecture(conditions.input_size)
    model = write_network(reference, conditions.setting)
    executed = precision_of(model, setting)
    if executed != setting.precision:
        raise DeviceError(
            f"{setting.runtime} executes {setting.precision} as {executed} on {conditions.model}: "
            f"use --precision {executed}"
        )
    return Bench(setting, model)


def fill(
    table: LatencyTable,
    entries: Iterable[Entry],
    *,
    bench: Bench | None = None,
    max_rounds: int = MAX_ROUNDS,
    save: Callable[[], object] = lambda: None,
) -> None:
    """Measure the entries that the table lacks; `save` is called after every batch.

    What was measured while the machine was in another state than for most of the table is measured
    once more at the end, if the machine has come back.
    """
    todo = {entry for entry in entries if entry not in table.rows}
    if not todo:
        return
    bench = bench or open_bench(table.conditions)
    with Progress(f"profile {table.conditions.stem}", len(todo)) as bar:
        for batch in batches_of(todo):
            _measure(table, batch, bench, max_rounds)
            for entry in batch:
                bar.advance(str(entry))
            save()
    for _ in range(STATE_PASSES):
        strays = [entry for entry in table.strays() if entry in todo]
        if not strays or not same_state(bench.reference_ms(), table.reference_ms):
            break
        for batch in batches_of(strays):
            _measure(table, batch, bench, max_rounds)
            save()


def _measure(table: LatencyTable, entries: Sequence[Entry], bench: Bench, max_rounds: int) -> None:
    """Measure one batch of entries, whatever the table holds of them."""
    start = time.perf_counter()
    probes = {probe.key: probe for entry in entries for probe in terms(entry)}
    models = {key: write(probe, bench.setting) for key, probe in probes.items()}
    written = time.perf_counter() - start
    result = bench.run(models, max_rounds=max_rounds)
    add_rows(table, entries, result)
    spend(table, write=written, load=result.load_s, time=result.time_s)


def add_rows(table: LatencyTable, entries: Sequence[Entry], result: BatchResult) -> None:
    """Turn the timings of a batch into rows, and keep what disturbed it."""
    today = datetime.date.today().isoformat()
    for entry in entries:
        parts = {probe.key: sign for probe, sign in terms(entry).items()}
        timings = {key: result.timings[key] for key in parts}
        table.rows[entry] = Row(
            ms=max(0.0, sum(sign * timings[key].ms for key, sign in parts.items())),
            min_ms=max(0.0, sum(sign * timings[key].min_ms for key, sign in parts.items())),
            uncertainty_ms=math.hypot(
                *(sign * timings[key].interval_ms for key, sign in parts.items())
            ),
            spread=max(timing.spread for timing in timings.values()),
            n=min(timing.n for timing in timings.values()),
            reference_ms=result.reference.ms,
            date=today,
            heat=__version__,
        )
    watch(table, result.disturbance)
    speeds = table.facts.setdefault("reference_ms", {})
    ms = round(result.reference.ms, 4)
    speeds["fastest"] = min(speeds.get("fastest", ms), ms)
    speeds["slowest"] = max(speeds.get("slowest", ms), ms)


def watch(table: LatencyTable, disturbance: Disturbance) -> None:
    """Keep the worst of what disturbed the measurement."""
    worst = table.facts.setdefault("disturbance", {})
    for name, value in asdict(disturbance).items():
        worst[name] = max(worst.get(name, 0), value)


def spend(table: LatencyTable, **seconds: float) -> None:
    """Add to the seconds that the table has cost."""
    spent = table.facts.setdefault("seconds", {})
    for name, value in seconds.items():
        spent[name] = round(spent.get(name, 0.0) + value, 1)


def calibrate(
    table: LatencyTable,
    template: Architecture,
    widths: Sequence[int],
    positions: Sequence[int],
    *,
    checks: Checks | None = None,
    save: Callable[[], object] = lambda: None,
) -> None:
    """Measure random networks: some set the table's factor, others its held-out error."""
    if template.input_size != table.conditions.input_size:
        raise UserError(
            f"template of {template.input_size}, table of {table.conditions.input_size}"
        )
    checks = checks or Checks()
    networks = check_networks(template, widths, positions, checks)
    bench = open_bench(table.conditions)
    needed = [entry for network in networks for entry in network.entries().values()]
    fill(table, needed, bench=bench, max_rounds=checks.max_rounds, save=save)
    results: list[NetworkResult] = []
    peaks: list[float] = []
    reference = write_network(reference_architecture(template.input_size), bench.setting)

    def measure(model: Model) -> NetworkResult:
        if not model.onnx:  # torch's networks live in this process
            return bench.network(model)
        return time_network(model, reference, bench.setting, FRESH_COMMAND)

    with Progress("whole networks", len(networks)) as bar:
        for index, network in enumerate(networks):
            start = time.perf_counter()
            model = write_network(network, bench.setting, seed=index)
            written = time.perf_counter() - start
            result = measure(model)
            for _ in range(STATE_PASSES):
                if same_state(result.reference_ms, table.reference_ms):
                    break
                time.sleep(STATE_WAIT_S)
                result = measure(model)
            results.append(result)
            spend(table, write=written, load=result.load_s, time=result.time_s)
            if index < checks.memory and model.onnx:
                peaks.append(peak_mb(model, bench.setting, FRESH_COMMAND))
            bar.advance(str(network.widths))
    set_checks(table, networks, results, peaks, checks)
    save()


def set_checks(
    table: LatencyTable,
    networks: Sequence[Architecture],
    results: Sequence[NetworkResult],
    peaks_mb: Sequence[float],
    checks: Checks,
) -> None:
    """Fit what the measured networks say about latency and memory.

    Their times are taken to the table's reference speed.
    """
    samples = []
    for network, result in zip(networks, results, strict=True):
        watch(table, result.disturbance)
        ms = result.ms * scale_to(table.reference_ms, result.reference_ms)
        samples.append(Sample(table.sum_ms(network), len(network.entries()), ms))
    table.calibration = calibrated(samples[: checks.anchors], samples[checks.anchors :])
    if peaks_mb:
        setting = table.conditions.setting
        memory = [
            MemorySample(size_mb(network, setting), working_set_mb(network), peak)
            for network, peak in zip(networks, peaks_mb, strict=False)
        ]
        table.memory = MemoryModel.fit(
            [s for i, s in enumerate(memory) if (i + 1) % HELD_OUT_EVERY],
            [s for i, s in enumerate(memory) if not (i + 1) % HELD_OUT_EVERY],
        )
