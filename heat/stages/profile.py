"""`heat profile`: a device's latency table, measured on this machine."""

import sys
import time
from contextlib import ExitStack
from dataclasses import asdict

from deploy.edge.engine import tensorrt
from latency_tables.devices import Target
from latency_tables.models import write_network
from latency_tables.networks import reference_architecture
from latency_tables.plan import Checks, space_entries
from latency_tables.probe.batch import feeds_of
from latency_tables.sidecar import Facts
from latency_tables.table import LatencyTable
from latency_tables.table_file import write_table
from latency_tables.threads import best_count, describe, thread_check, trouble
from supernet.errors import DeviceError
from supernet.heatdetr.supernet import SearchSpace

from ..records import Result
from ..tables import open_for_writing, speeds
from ..thinning.filling import lacks, measure_table
from ..thinning.moves import prior_logits
from ..workspace import Workspace


def profile(workspace: Workspace, target: Target, space: SearchSpace) -> Result:
    """Measure what the table lacks of a space, then check it with whole networks."""
    started = time.monotonic()
    refuse_without_nms(target)
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


def refuse_without_nms(target: Target) -> None:
    """Refuse a TensorRT that cannot build what is timed: RTX's has no NMS layer."""
    if target.runtime == "tensorrt" and tensorrt()[1] != "tensorrt":
        raise DeviceError(
            "TensorRT for RTX has no NMS, with which networks are timed: pip install "
            "'heatdetr[tensorrt]' on this machine, or --runtime onnxruntime"
        )


def warn_of_threads(
    target: Target, input_size: tuple[int, int]
) -> dict[str, dict[str, float]] | None:
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


def record(
    workspace: Workspace, target: Target, space: SearchSpace, table: LatencyTable, seconds: float
) -> Result:
    """Save the table and keep what `heat profile` prints."""
    path = write_table(table, workspace.tables)
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
        "space": space.to_dict(),
        "seconds": round(seconds, 1),
    }
    return workspace.record("profile", result)


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


def disturbances(facts: Facts) -> list[str]:
    """Return in words what disturbed a measurement enough to matter."""
    worst = facts.get("disturbance", {})
    found = []
    if worst.get("other_load", 0) > 0.1:
        found.append(f"other processes kept up to {worst['other_load']:.1f} cores busy")
    if worst.get("stolen", 0) > 0.02:
        found.append(f"the hypervisor took up to {100 * worst['stolen']:.0f} % of the time")
    if worst.get("throttled", 0):
        found.append(f"the container's CPU quota stopped it {worst['throttled']} times in a batch")
    if worst.get("slowdown", 0) > 0.1:
        fell = 100 * (1 - 1 / (1 + worst["slowdown"]))
        found.append(f"the clock fell by up to {fell:.0f} % (throttling)")
    return found


def warn(target: Target) -> None:
    """Print what is unexpected about the device."""
    for text in target.warnings:
        print(f"warning: {text}", file=sys.stderr)
