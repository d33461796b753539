"""Fills a latency table by measuring on this machine, batch by batch, and calibrates it."""

import datetime
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace

from supernet.architecture import Architecture, Entry
from supernet.errors import DeviceError, UserError
from supernet.progress import Progress
from supernet.version import __version__

from .batch import (
    SLOW_PASSES,
    BatchResult,
    Bench,
    NetworkResult,
    precision_of,
    slow_moments,
)
from .calibration import Sample, calibrated
from .conditions import Conditions
from .costs import MemoryModel, MemorySample, size_mb, working_set_mb
from .drift import running_median, scale_to
from .machine import Disturbance
from .measure import ROUNDS
from .models import write, write_network
from .networks import reference_architecture
from .peak import peak_mb
from .plan import Checks, batches_of, check_networks
from .probes import terms
from .table import LatencyTable, Row

HELD_OUT_EVERY = 4
"""Of the networks whose memory is measured, every fourth only checks the memory model."""

PEAK_COMMAND = (sys.executable, "-m", "latency_tables.peak")


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
    rounds: int = ROUNDS,
    save: Callable[[], object] = lambda: None,
) -> None:
    """Measure the entries that the table lacks; `save` is called after every batch.

    What was measured in slow moments, as the reference network beside it tells, is measured again
    at the end, and the lower times count.
    """
    todo = {entry for entry in entries if entry not in table.rows}
    if not todo:
        return
    bench = bench or open_bench(table.conditions)
    batches = batches_of(todo)
    results: list[BatchResult] = []
    with Progress(f"profile {table.conditions.stem}", len(todo)) as bar:
        for batch in batches:
            results.append(_measure(table, batch, bench, rounds))
            add_rows(table, batch, results[-1])
            for entry in batch:
                bar.advance(str(entry))
            save()
    for _ in range(SLOW_PASSES):
        slow = slow_moments([result.reference.min_ms for result in results])
        if not slow:
            break
        with Progress("slow moments again", len(slow)) as bar:
            for index in slow:
                again = _measure(table, batches[index], bench, rounds)
                results[index] = results[index].best(again)
                add_rows(table, batches[index], results[index])
                bar.advance()
                save()
    smooth_references(table, batches)
    save()


def _measure(
    table: LatencyTable, entries: Sequence[Entry], bench: Bench, rounds: int
) -> BatchResult:
    """Measure one batch of entries, whatever the table holds of them."""
    start = time.perf_counter()
    probes = {probe.key: probe for entry in entries for probe in terms(entry)}
    models = {key: write(probe, bench.setting) for key, probe in probes.items()}
    written = time.perf_counter() - start
    result = bench.run(models, rounds=rounds)
    spend(table, write=written, load=result.load_s, time=result.time_s)
    return result


def add_rows(table: LatencyTable, entries: Sequence[Entry], result: BatchResult) -> None:
    """Turn the timings of a batch into rows, and keep what disturbed it."""
    today = datetime.date.today().isoformat()
    for entry in entries:
        parts = {probe.key: sign for probe, sign in terms(entry).items()}
        timings = {key: result.timings[key] for key in parts}
        table.rows[entry] = Row(
            ms=max(0.0, sum(sign * timings[key].min_ms for key, sign in parts.items())),
            median_ms=max(0.0, sum(sign * timings[key].median_ms for key, sign in parts.items())),
            uncertainty_ms=math.hypot(
                *(sign * timings[key].interval_ms for key, sign in parts.items())
            ),
            spread=max(timing.spread for timing in timings.values()),
            n=min(timing.n for timing in timings.values()),
            reference_ms=result.reference.min_ms,
            date=today,
            heat=__version__,
        )
    watch(table, result.disturbance)
    speeds = table.facts.setdefault("reference_ms", {})
    ms = round(result.reference.min_ms, 4)
    speeds["fastest"] = min(speeds.get("fastest", ms), ms)
    speeds["slowest"] = max(speeds.get("slowest", ms), ms)


def smooth_references(table: LatencyTable, batches: Sequence[Sequence[Entry]]) -> None:
    """Give the rows of batches, in order of time, the running median of their references."""
    last = {entry: index for index, batch in enumerate(batches) for entry in batch}
    speeds = [table.rows[batch[0]].reference_ms for batch in batches]
    smooth = running_median(speeds)
    for entry, index in last.items():
        table.rows[entry] = replace(table.rows[entry], reference_ms=smooth[index])


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
    fill(table, needed, bench=bench, save=save)
    results: list[tuple[int, NetworkResult]] = []
    peaks: list[float] = []

    def measure(index: int) -> None:
        start = time.perf_counter()
        model = write_network(networks[index], bench.setting, seed=index)
        written = time.perf_counter() - start
        result = bench.network(model)
        results.append((index, result))
        spend(table, write=written, load=result.load_s, time=result.time_s)
        if len(results) == index + 1 and index < checks.memory and model.onnx:
            peaks.append(peak_mb(model, bench.setting, PEAK_COMMAND))

    with Progress("whole networks", checks.passes * len(networks)) as bar:
        for _ in range(checks.passes):
            for index, network in enumerate(networks):
                measure(index)
                bar.advance(str(network.widths))
    for index in slow_networks(results):
        measure(index)
    set_checks(table, networks, results, peaks, checks)
    save()


def slow_networks(measured: Sequence[tuple[int, NetworkResult]]) -> list[int]:
    """Return the networks that were measured in slow moments every time."""
    slow = set(slow_moments([result.reference_ms for _, result in measured]))
    timely = {index for place, (index, _) in enumerate(measured) if place not in slow}
    return sorted({index for index, _ in measured} - timely)


def set_checks(
    table: LatencyTable,
    networks: Sequence[Architecture],
    measured: Sequence[tuple[int, NetworkResult]],
    peaks_mb: Sequence[float],
    checks: Checks,
) -> None:
    """Fit what the measured networks say about latency and memory.

    `measured` holds results in order of time, each with its network's index. Times are taken to
    the speed that the reference network had among them, in the median; a network's lowest counts:
    what disturbs only ever adds.
    """
    speeds = running_median([result.reference_ms for _, result in measured])
    usual_ms = statistics.median(speeds)
    lowest = [math.inf] * len(networks)
    for (index, result), speed_ms in zip(measured, speeds, strict=True):
        watch(table, result.disturbance)
        lowest[index] = min(lowest[index], result.ms * scale_to(usual_ms, speed_ms))
    samples = [
        Sample(table.sum_ms(network), len(network.entries()), ms)
        for network, ms in zip(networks, lowest, strict=True)
    ]
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
