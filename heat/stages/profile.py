"""`heat profile`: a device's latency table, measured on this machine."""

import sys
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from latency_tables.batch import feeds_of
from latency_tables.conditions import Conditions
from latency_tables.devices import Target
from latency_tables.families import family
from latency_tables.lock import only_one
from latency_tables.meter import DeviceMeter, Meter
from latency_tables.models import write_network
from latency_tables.networks import reference_architecture
from latency_tables.plan import Checks, check_networks, space_entries
from latency_tables.pricing import SUSTAINED, weighted_quantile
from latency_tables.profile import absorb, calibrate, fill
from latency_tables.store import conditions_of, empty_table, open_table
from latency_tables.table import LatencyTable
from latency_tables.threads import best_count, describe, thread_check, trouble
from supernet.errors import TableError
from supernet.supernet import SearchSpace

from ..aims import aims
from ..thinning import Logits, prior_logits
from ..workspace import Workspace

WATCH_S = 8.0
"""Seconds that the machine's state is watched for before a table made earlier is used."""
REWATCH_S = 40.0
"""Seconds where that state is none of those that the table has seen."""
STATE_ROOM = 1.05
"""Share by which the state may lie outside the table's tenth and nine tenths."""


def profile(workspace: Workspace, target: Target, space: SearchSpace) -> dict[str, Any]:
    """Measure what the table lacks of a space, then check it with whole networks."""
    started = time.monotonic()
    warn(target)
    threads = warn_of_threads(target, space.template.input_size)
    with ExitStack() as locks:
        table = open_for_writing(workspace, target, space.template.input_size, locks)
        checks = Checks()
        if lacks(table, space, checks):
            measure_table(workspace, table, space, prior_logits(space), checks)
        else:
            table.refit(space_entries(space.template, space.widths, oa=True))
        if threads is not None:
            table.facts["threads"] = threads
        report(table)
        return record(workspace, target, space, table, time.monotonic() - started)


def lacks(table: LatencyTable, space: SearchSpace, checks: Checks) -> bool:
    """Say whether a table needs timings for a space: too few networks, or families without any.

    Thinning makes tables with fewer networks than `heat profile`; another space may have operators
    that none of the table's samples is of.
    """
    networks = {network.architecture for network in table.networks}
    checked_before = table.calibration.checks and not networks  # a table of 0.1.0
    if len(networks) < checks.networks and not checked_before:
        return True
    sampled = {family(sample.entry) for sample in table.samples}
    entries = space_entries(space.template, space.widths, oa=True)
    return any(family(entry) not in sampled for entry in entries)


def recorded_table(workspace: Workspace, stage: dict[str, Any]) -> LatencyTable:
    """Return the table a stage names; the workspace may have moved, or the table be HEAT's own."""
    moved = workspace.tables / Path(stage["table"]).name
    return LatencyTable.load(moved if moved.exists() else Path(stage["table"]))


def open_for_writing(
    workspace: Workspace, target: Target, input_size: tuple[int, int], locks: ExitStack
) -> LatencyTable:
    """Return the table that exists, for this process alone."""
    locks.enter_context(table_lock(workspace, conditions_of(target, input_size)))
    return existing_table(workspace, target, input_size)


def measure_table(
    workspace: Workspace,
    table: LatencyTable,
    space: SearchSpace,
    logits: Logits,
    checks: Checks,
    meter: Meter | None = None,
) -> None:
    """Time entries and whole networks of a space, those on the way of thinning first."""
    meter = meter or DeviceMeter(table.conditions)

    def save() -> object:
        return table.save(workspace.tables)

    entries = space_entries(space.template, space.widths, oa=True)
    fill(table, entries, meter, aims(space, logits), checks=checks, save=save)
    networks = check_networks(space.template, space.widths, space.positions, checks.networks)
    known = {network.architecture for network in table.networks}
    if len(known) < checks.networks or (checks.memory and table.memory is None):
        calibrate(table, networks, meter, checks=checks, save=save)


def refresh(workspace: Workspace, table: LatencyTable) -> None:
    """Watch what state the machine is in; where it is another than the table's, forget that.

    What a machine sustains today need not be what it did when it was profiled.
    """
    if not table.history:
        return
    meter = DeviceMeter(table.conditions)
    taken = meter.watch(WATCH_S)
    now = float(np.median([moment.state[0] for moment in taken.moments]))
    best, sustained = speeds(table)
    if not best / STATE_ROOM <= now <= sustained * STATE_ROOM:
        print(
            f"the machine runs its reference network in {now:.1f} ms, where it took {best:.1f} to "
            f"{sustained:.1f} ms when the table was measured: watching it for {REWATCH_S:.0f} s",
            file=sys.stderr,
        )
        # What was seen before counts no more than what is seen now.
        seen = sum(moment.seconds for moment in table.history)
        share = min(1.0, (REWATCH_S + WATCH_S) / max(seen, 1e-9))
        table.history = [replace(m, seconds=m.seconds * share) for m in table.history]
        absorb(table, meter.watch(REWATCH_S))
    absorb(table, taken)
    table.save(workspace.tables)


def warn_of_threads(target: Target, input_size: tuple[int, int]) -> dict[str, Any] | None:
    """Report where several threads are slower or less steady than one, and what to set."""
    if target.threads < 2 or target.device.kind != "cpu" or target.runtime == "torch":
        return None
    model = write_network(reference_architecture(input_size), target.setting)
    timings = thread_check(
        model.onnx,
        feeds_of(model.inputs),
        (1, target.threads),
        runtime=target.runtime,
        precision=target.precision,
        spinning=target.setting.spins,
        pinning=target.pinning,
    )
    wrong = trouble(timings)
    if wrong:
        print(
            f"warning: {wrong} ({describe(timings)}): --threads {best_count(timings)} serves "
            "better",
            file=sys.stderr,
        )
    return {str(count): asdict(timing) for count, timing in timings.items()}


def table_lock(workspace: Workspace, conditions: Conditions) -> AbstractContextManager[None]:
    """Hold the table of some conditions, and its estimate, for this process alone.

    To be entered before the table is read: what another process adds in between would be lost.
    """
    return only_one(workspace.tables / f"{conditions.stem}.csv")


def table_path(workspace: Workspace, table: LatencyTable) -> Path:
    """Return where a table lies."""
    return workspace.tables / f"{table.name}.csv"


def record(
    workspace: Workspace, target: Target, space: SearchSpace, table: LatencyTable, seconds: float
) -> dict[str, Any]:
    """Save the table and keep what `heat profile` prints."""
    path = table.save(workspace.tables)
    conditions = table.conditions
    result = {
        "device": conditions.device,
        "requested": target.device.name,
        "detected": table.facts.get("detected", {}),
        "conditions": asdict(conditions),
        "runtime": conditions.runtime,
        "runtime_version": conditions.runtime_version,
        "precision": conditions.precision,
        "threads": conditions.threads,
        "spinning": conditions.spinning,
        "pinning": conditions.pinning,
        "input_size": list(space.template.input_size),
        "entries": len(table.rows),
        "table": str(path),
        "source": "estimated" if table.estimated else "measured",
        "here": target.here,
        "held_out_error": table.calibration.held_out_error,
        "factor": table.calibration.factor,
        "overhead_ms": table.calibration.overhead_ms,
        "memory_error": table.memory.held_out_error if table.memory else None,
        "unstable": round(table.unstable, 4),
        "sampled": table.sampled,
        "samples": len(table.samples),
        "networks": len(table.networks),
        "covered": table.calibration.covered,
        "thread_check": table.facts.get("threads"),
        "reference_ms": [round(ms, 4) for ms in speeds(table)],
        "disturbance": table.facts.get("disturbance"),
        "spent_seconds": table.facts.get("seconds"),
        "space": space.to_json(),
        "seconds": round(seconds, 1),
    }
    return workspace.record("profile", result)


def existing_table(
    workspace: Workspace, target: Target, input_size: tuple[int, int]
) -> LatencyTable:
    """Return the table that exists; a broken or stale one gives way to a new one."""
    try:
        return open_table(workspace.tables, target, input_size)
    except TableError as error:
        print(f"warning: {error}: now measured afresh", file=sys.stderr)
        return empty_table(target, input_size)


def report(table: LatencyTable) -> None:
    """Say what the time went into, what disturbed it, and how good the table is."""
    spent = table.facts.get("seconds", {})
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in spent.items())
    error = table.calibration.held_out_error
    print(
        f"{len(table.rows)} entries, {table.sampled} of them timed, the others modelled; {parts}; "
        f"error on networks predicted without their own timing "
        f"{'unknown' if error is None else f'{100 * error:.1f} %'}",
        file=sys.stderr,
    )
    if table.unstable:
        print(
            f"unstable: {100 * table.unstable:.0f} % of the entries are known no better than 10 %",
            file=sys.stderr,
        )
    for text in disturbances(table.facts):
        print(f"warning: {text}", file=sys.stderr)
    best, sustained = speeds(table)
    if sustained > 1.05 * best:
        print(
            "warning: the machine's speed changes: for a tenth of the time it is "
            f"{100 * (sustained / best - 1):.0f} % slower than at its best; frame rates are "
            "promised for what it sustains",
            file=sys.stderr,
        )


def speeds(table: LatencyTable) -> tuple[float, float]:
    """Return milliseconds of the reference network at best and sustained (p10 and p90)."""
    found = [moment for moment in table.history if moment.state]
    if not found:
        return table.reference_ms, table.reference_ms
    times = np.array([moment.state[0] for moment in found])
    seconds = np.array([moment.seconds for moment in found])
    best, sustained = (weighted_quantile(times, seconds, q) for q in (1 - SUSTAINED, SUSTAINED))
    return best, sustained


def disturbances(facts: dict[str, Any]) -> list[str]:
    """Return in words what disturbed a measurement enough to matter."""
    worst = facts.get("disturbance", {})
    said = []
    if worst.get("other_load", 0) > 0.1:
        said.append(f"other processes kept up to {worst['other_load']:.1f} cores busy")
    if worst.get("stolen", 0) > 0.02:
        said.append(f"the hypervisor took up to {100 * worst['stolen']:.0f} % of the time")
    if worst.get("throttled", 0):
        said.append(f"the container's CPU quota stopped it {worst['throttled']} times in a batch")
    if worst.get("slowdown", 0) > 0.1:
        fell = 100 * (1 - 1 / (1 + worst["slowdown"]))
        said.append(f"the clock fell by up to {fell:.0f} % (throttling)")
    return said


def warn(target: Target) -> None:
    """Print what is unexpected about the device."""
    for text in target.warnings:
        print(f"warning: {text}", file=sys.stderr)
