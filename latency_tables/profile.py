"""Fills a latency table: times the most informative entries until predictions are certain."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

from supernet.errors import UserError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.operators.entries import Entry
from supernet.progress import Progress

from .costs import MemoryModel, MemorySample, size_mb, working_set_mb
from .meter import Meter, Taken
from .plan import (
    Checks,
    batches_of,
    entries_sd,
    first_entries,
    next_entries,
)
from .probe.machine import Disturbance
from .table import LatencyTable

HELD_OUT_EVERY = 4
"""Of the networks whose memory is measured, every fourth is held out to check the model."""

Targets = Callable[[LatencyTable], Sequence[Architecture]]
"""Returns the networks whose predictions are to become certain, given the table so far."""


def fill(
    table: LatencyTable,
    entries: Iterable[Entry],
    meter: Meter,
    targets: Targets,
    *,
    checks: Checks | None = None,
    save: Callable[[], object] = lambda: None,
) -> None:
    """Time entries until the predictions of the targets are certain enough or the budget is spent.

    Every entry has a row afterwards, from samples of its own or from its neighbours. `save` is
    called after every batch; existing samples of the table are kept and used.
    """
    checks = checks or Checks()
    wanted = sorted(set(entries))
    started = time.monotonic()
    timed: dict[Entry, int] = {}
    known = {sample.entry for sample in table.samples}
    first = batches_of(entry for entry in first_entries(wanted) if entry not in known)
    with Progress(f"profile {table.conditions.stem}", max(1, round(checks.budget_s))) as bar:
        shown = 0

        def left() -> float:
            nonlocal shown
            spent = time.monotonic() - started
            bar.advance(f"{table.sampled} entries timed", int(spent) - shown)
            shown = int(spent)
            return checks.budget_s - spent

        def measure(batch: Sequence[Entry]) -> None:
            absorb(table, meter.entries(batch))
            for entry in batch:
                timed[entry] = timed.get(entry, 0) + 1
            table.refit(wanted)
            save()

        for first_batch in first:
            measure(first_batch)
            left()
        if not first:
            table.refit(wanted)
        aims = list(targets(table))
        while left() > 0:
            assert table.model is not None
            if entries_sd(table.model, aims) < checks.enough_sd:
                break
            batch = next_entries(table.model, wanted, aims, timed)
            if not batch:
                break
            measure(batch)
    save()


def calibrate(
    table: LatencyTable,
    networks: Sequence[Architecture],
    meter: Meter,
    *,
    checks: Checks | None = None,
    save: Callable[[], object] = lambda: None,
) -> None:
    """Time whole networks, to calibrate the sum of entries and to check the table."""
    checks = checks or Checks()
    peaks: list[float] = []
    with Progress("whole networks", len(networks)) as bar:
        for index, network in enumerate(networks):
            if network.input_size != table.conditions.input_size:
                raise UserError(
                    f"network of {network.input_size}, table of {table.conditions.input_size}"
                )
            absorb(table, meter.network(network, seed=index))
            table.refit()
            save()
            if index < checks.memory:
                peak = meter.peak_mb(network, seed=index)
                if peak is not None:
                    peaks.append(peak)
            bar.advance(str(network.widths))
    if peaks:
        set_memory(table, networks, peaks)
    save()


def absorb(table: LatencyTable, taken: Taken) -> None:
    """Add timings to a table, with their disturbance and their cost in seconds."""
    table.add(taken.samples, taken.networks, taken.moments)
    if taken.disturbance is not None:
        watch(table, taken.disturbance)
    spend(table, **taken.seconds)


def watch(table: LatencyTable, disturbance: Disturbance) -> None:
    """Record the worst value of each field of the disturbances."""
    worst = table.facts.setdefault("disturbance", {})
    for name, value in asdict(disturbance).items():
        worst[name] = max(worst.get(name, 0), value)


def spend(table: LatencyTable, **seconds: float) -> None:
    """Add to the seconds spent on the table."""
    spent = table.facts.setdefault("seconds", {})
    for name, value in seconds.items():
        spent[name] = round(spent.get(name, 0.0) + value, 1)


def set_memory(
    table: LatencyTable, networks: Sequence[Architecture], peaks_mb: Sequence[float]
) -> None:
    """Fit the table's memory model to measured networks."""
    setting = table.conditions.setting
    memory = [
        MemorySample(size_mb(network, setting), working_set_mb(network), peak)
        for network, peak in zip(networks, peaks_mb, strict=False)
    ]
    table.memory = MemoryModel.fit(
        [s for i, s in enumerate(memory) if (i + 1) % HELD_OUT_EVERY],
        [s for i, s in enumerate(memory) if not (i + 1) % HELD_OUT_EVERY],
    )
