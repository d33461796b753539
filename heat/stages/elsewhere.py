"""`heat profile --host`, `--pack`, `--unpack`: devices other than this machine."""

import sys
import tempfile
import time
from pathlib import Path

from latency_tables.devices import Target, declared
from latency_tables.pack import probe_version, read_plan, table_from_results, write_pack
from latency_tables.plan import TARGETS, Checks, check_networks, design, space_entries
from latency_tables.probe.lock import only_one
from latency_tables.remote import Host
from latency_tables.table_file import read_table
from supernet.atomic import check_replaceable
from supernet.heatdetr.supernet import SearchSpace

from ..records import Result
from ..tables import table_lock, table_path
from ..views.outputs import is_pack
from ..workspace import Workspace
from .profile import record, report

PACKED_ENTRIES = 260
"""Entries that a device elsewhere is asked to time; all others are modelled from them."""


def pack_probe(path: Path, target: Target, space: SearchSpace) -> Result:
    """Write the probe and what a table needs into one file."""
    check_replaceable(path, "--pack", is_pack)
    checks = Checks()
    return write_pack(
        path,
        target,
        design(
            space_entries(space.template, space.widths, oa=True),
            check_networks(space.template, space.widths, space.positions, TARGETS, seed=7),
            PACKED_ENTRIES,
        ),
        check_networks(space.template, space.widths, space.positions, checks.networks),
        checks,
        space.to_dict(),
        space.template.input_size,
    ) | {"run": f"python {path.name}", "then": f"heat profile --unpack {results_name(path)}"}


def results_name(pack: Path) -> str:
    """Return what the probe calls its results."""
    return pack.with_suffix(".results.jsonl").name


def unpack_results(workspace: Workspace, path: Path) -> Result:
    """Turn a carried probe's results into a table of the workspace."""
    started = time.monotonic()
    table = table_from_results(path)
    plan = read_plan(path)
    space = SearchSpace.from_dict(plan["space"], str(path))
    target = declared(plan["device"])
    if target.device.pattern and table.conditions.device != target.device.name:
        print(
            f"warning: {target.device.name} means {target.device.title}; measured was "
            f"{table.conditions.model}, and it is named as {table.conditions.device}",
            file=sys.stderr,
        )
    with table_lock(workspace, table.conditions):
        existing = table_path(workspace, table)
        if existing.exists():
            table.merge(read_table(existing))
        report(table)
        return record(workspace, target, space, table, time.monotonic() - started)


def profile_host(
    workspace: Workspace, target: Target, space: SearchSpace, address: str, python: str
) -> Result:
    """Measure a table on another machine over ssh."""
    started = time.monotonic()
    host = Host(address, python=python)
    results = workspace.tables / f"{target.name}.results.jsonl"
    with only_one(results):
        with tempfile.TemporaryDirectory() as folder:
            pack = Path(folder) / "heat-probe.pyz"
            made = pack_probe(pack, target, space)
            # The name differs between packs, so that an interrupted one is found again.
            host.measure(pack, f"heat-{made['id']}-{probe_version()}", results)
        done = unpack_results(workspace, results)
        results.unlink()
    seconds = round(time.monotonic() - started, 1)
    return workspace.record("profile", {**done, "host": address, "seconds": seconds})
