"""`heat profile --estimate`: a table from published figures, corrected by a few measured rows."""

import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from latency_tables.devices import Target, resolve
from latency_tables.estimate import corrected, entry_errors, estimated_table, spread_entries
from latency_tables.meter import DeviceMeter
from latency_tables.pack import probe_version, table_from_results, write_pack
from latency_tables.plan import Checks, batches_of, space_entries
from latency_tables.profile import absorb
from latency_tables.remote import Host
from latency_tables.roofline import Efficiencies
from latency_tables.store import empty_table
from latency_tables.table import LatencyTable
from supernet.errors import DeviceError
from supernet.heatdetr.operators.entries import Entry
from supernet.heatdetr.supernet import SearchSpace

from ..records import Result
from ..tables import table_lock
from ..workspace import Workspace
from .profile import record


def estimate_table(
    workspace: Workspace,
    target: Target,
    space: SearchSpace,
    few_shot: int,
    host: str | None,
    host_python: str,
) -> Result:
    """Estimate every entry of the space; with `few_shot`, measure some and correct the rest."""
    started = time.monotonic()
    efficiencies = Efficiencies.load()
    entries = space_entries(space.template, space.widths, oa=True)
    size = space.template.input_size
    table = estimated_table(target, size, entries, efficiencies)
    for op, nearest in table.facts["estimate"]["not_fitted"].items():
        print(
            f"warning: {op} is on no measured table: estimated by the coefficients of {nearest}",
            file=sys.stderr,
        )
    _say_published(table)
    errors: dict[str, float | None] = {"estimate_error": efficiencies.error.get("other_setting")}
    if few_shot:
        chosen = spread_entries(entries, few_shot)
        real = _measure(target, space, chosen, host, host_python)
        table.conditions = real.conditions
        before, after = leave_one_out(table, real)
        table = corrected(table, {entry: real.rows[entry] for entry in chosen})
        errors |= {"few_shot": few_shot, "error_before": before, "error_after": after}
        table.facts["few_shot"] = errors
        print(
            f"on the {few_shot} measured entries the estimate was off by {100 * before:.0f} %; "
            f"corrected by the others, by {100 * after:.0f} % (medians)",
            file=sys.stderr,
        )
    print(
        f"{table.conditions.stem}: {len(table.rows)} entries ESTIMATED from {target.device.name}'s "
        "published figures",
        file=sys.stderr,
    )
    with table_lock(workspace, table.conditions):
        done = record(workspace, target, space, table, time.monotonic() - started)
    return workspace.record("profile", {**done, **errors})


def _say_published(table: LatencyTable) -> None:
    """Say which published times corrected the estimate, and how well they agree."""
    facts = table.facts["estimate"].get("published")
    if not facts:
        return
    errors = [abs(error) for error in facts["leave_one_out"].values()]
    other = "" if facts["runtime"] == table.conditions.runtime else ", another runtime"
    rest = f"; each predicted by the rest within {100 * max(errors):.0f} %" if errors else ""
    print(
        f"corrected by {len(facts['points'])} networks timed there by others "
        f"({facts['runtime']} {facts['precision']}{other}): {', '.join(facts['points'])}{rest}",
        file=sys.stderr,
    )


def _measure(
    target: Target, space: SearchSpace, chosen: list[Entry], host: str | None, python: str
) -> LatencyTable:
    """Measure a few entries on the real device: over ssh, or here if this machine is it."""
    if host is not None:
        with tempfile.TemporaryDirectory() as folder:
            pack = Path(folder) / "heat-probe.pyz"
            checks = Checks(networks=0, memory=0)
            size = space.template.input_size
            made = write_pack(pack, target, chosen, [], checks, space.to_dict(), size)
            results = Path(folder) / "results.jsonl"
            Host(host, python=python).measure(pack, f"few-{made['id']}-{probe_version()}", results)
            return table_from_results(results)
    here = resolve(
        target.device.name,
        runtime=target.runtime,
        threads=target.threads,
        precision=target.precision,
    )
    here = replace(here, spinning=target.spinning, pinning=target.pinning)
    if here.name != target.name:
        raise DeviceError(
            f"--few-shot measures on the real {target.device.name}; this machine is {here.name}: "
            "reach the device with --host USER@BOX"
        )
    table = empty_table(here, space.template.input_size)
    meter = DeviceMeter(table.conditions)
    for batch in batches_of(chosen):
        absorb(table, meter.entries(batch))
    table.refit(chosen)
    return table


def leave_one_out(estimate: LatencyTable, real: LatencyTable) -> tuple[float, float]:
    """Return the median error of the estimate, and of the estimate corrected by all other rows."""
    truth = {entry: row.ms for entry, row in real.rows.items()}
    before = entry_errors(estimate, truth)
    after = []
    for entry, ms in truth.items():
        others = {other: row for other, row in real.rows.items() if other != entry}
        if others:
            after.extend(entry_errors(corrected(estimate, others), {entry: ms}))
    return statistics.median(before), statistics.median(after or before)
