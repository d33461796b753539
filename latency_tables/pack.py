"""Writes a pack, one file with all that a device needs to be profiled, and reads its results.

A pack is a Python zip application: HEAT's torch-free files joined into one program, and the
models. Large weights repeat a short random block, so that gigabytes of models compress to some
megabytes; dense kernels take the same time for any values.
"""

import hashlib
import json
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
import onnx
from onnx import numpy_helper

from deploy.edge import bench, cpu, cuda, engine, executed, gpu, runtimes, session
from deploy.standalone import join
from supernet import errors
from supernet.atomic import replacing
from supernet.errors import DeviceError, TableError, wrong_format
from supernet.graph.style import FORMS_VERSION
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.operators.entries import Entry
from supernet.heatdetr.supernet import SearchSpace
from supernet.progress import Progress

from .conditions import Conditions
from .device_file import find_device
from .devices import Target, name_of
from .meter import entries_taken, network_taken
from .models import write, write_network
from .plan import Checks, batches_of, space_entries
from .probe import batch, fresh, lock, machine, measure, program, records, setting, timings
from .probe.machine import Detected, Gpu
from .probe.measure import Timing
from .probe.program import RESULTS_FORMAT, read_results
from .probe.records import Header, Manifest, Plan, Record
from .probe.setting import Model, Setting, Shapes, key_of
from .probe.timings import batch_from_json, network_from_json
from .profile import absorb, set_memory
from .references import reference_models
from .sidecar import Facts
from .table import LatencyTable
from .terms import terms

PARTS = (
    errors, session, cpu, runtimes, executed, cuda, engine, gpu, bench,
    records, machine, measure, setting, timings, batch, lock, fresh, program,
)  # fmt: skip
"""Modules of the probe; each comes after those it imports."""

HEADER = '"""HEAT\'s probe, made by heat profile --pack."""\n'
FOOTER = """
if __name__ == "__main__":
    sys.exit(probe_main(sys.argv[1:]))
"""

BLOCK = 4096
"""Numbers in the random block that a large weight repeats: it fits deflate's window."""


class PackSummary(TypedDict):
    """What `heat profile --pack` reports of a pack."""

    pack: str
    """Path of the file."""
    id: str
    """Hash of the plan."""
    models: int
    megabytes: float
    probe: str
    """Version of the probe."""


def probe_script() -> str:
    """Return the source of the probe."""
    return join(PARTS, HEADER, FOOTER)


def probe_version() -> str:
    """Return a hash of the probe's source."""
    return hashlib.sha256(probe_script().encode()).hexdigest()[:16]


def write_pack(
    path: Path,
    target: Target,
    entries: Iterable[Entry],
    networks: Sequence[Architecture],
    checks: Checks,
    space: Mapping[str, object],
    size: tuple[int, int],
) -> PackSummary:
    """Write a pack for a device, whole or not at all.

    `space` is copied to the results file.
    """
    batches = batches_of(entries)
    names = [f"network{index}" for index in range(len(networks))]
    plan: Plan = {
        "device": target.device.name,
        "setting": target.setting.to_json(),
        "size": list(size),
        "forms": FORMS_VERSION,
        "entries": [[asdict(entry) for entry in entries] for entries in batches],
        "networks": [network.to_dict() for network in networks],
        "checks": asdict(checks),
        "space": space,
    }
    inputs: dict[str, Shapes] = {}

    def add(archive: zipfile.ZipFile, key: str, model: Model) -> None:
        archive.writestr(f"models/{key}.onnx", compressible(model.onnx))
        inputs[key] = model.inputs

    probes = {probe.key: probe for entries in batches for e in entries for probe in terms(e)}
    with replacing(path) as temporary, temporary.open("wb") as stream:
        stream.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("__main__.py", probe_script())
            with Progress(f"pack {path.name}", len(probes) + len(networks) + 1) as bar:
                for name, model in reference_models(size, target.setting).items():
                    add(archive, key_of(name), model)
                bar.advance("references")
                for key, item in probes.items():
                    add(archive, key, write(item, target.setting))
                    bar.advance(key)
                for index, (name, network) in enumerate(zip(names, networks, strict=True)):
                    add(archive, name, write_network(network, target.setting, seed=index))
                    bar.advance(name)
            manifest: Manifest = {
                "probe": probe_version(),
                "pack": hashlib.sha256(json.dumps(plan).encode()).hexdigest()[:16],
                "plan": plan,
                "setting": plan["setting"],
                "batches": [
                    sorted({probe.key for e in entries for probe in terms(e)})
                    for entries in batches
                ],
                "networks": names,
                "peaks": names[: checks.memory],
                "inputs": inputs,
            }
            archive.writestr("manifest.json", json.dumps(manifest))
    return {
        "pack": str(path),
        "id": manifest["pack"],
        "models": len(inputs),
        "megabytes": round(path.stat().st_size / 1e6, 1),
        "probe": manifest["probe"],
    }


def compressible(model: bytes) -> bytes:
    """Return the model with every large weight replaced by a repeated block of its values."""
    proto = onnx.load_from_string(model)
    rng = np.random.default_rng(0)
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.size > BLOCK and array.dtype.kind in "fi":
            block = rng.permutation(array.ravel()[:BLOCK])
            repeated = np.resize(block, array.shape).astype(array.dtype)
            tensor.CopyFrom(numpy_helper.from_array(repeated, tensor.name))
    return bytes(proto.SerializeToString())


def read_plan(path: Path) -> Plan:
    """Return the plan that a results file was measured by."""
    return _head(read_results(path), path)["plan"]


def _head(found: Sequence[Record], path: Path) -> Header:
    head = found[0] if found else None
    if head is None or "probe" not in head or "results_format" not in head or "plan" not in head:
        raise TableError(f"{path} holds no results: run the probe again")
    version = head["results_format"]
    if version != RESULTS_FORMAT:
        again = "make a new pack with heat profile --pack"
        raise TableError(wrong_format(path, version, [RESULTS_FORMAT], again))
    if head["probe"] != probe_version():
        raise TableError(
            f"{path} was made by probe {head['probe']}, this HEAT has {probe_version()}: make a "
            "new pack with heat profile --pack"
        )
    return head


def table_from_results(path: Path) -> LatencyTable:
    """Return the table of a probe's results file.

    Raises `TableError` where the file is incomplete or damaged, or was made by another version of
    the probe; `DeviceError` where the runtime executed another precision than the plan's.
    """
    found = read_results(path)
    head = _head(found, path)
    try:
        return _table(path, head, found)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        raise TableError(
            f"{path} is damaged ({type(error).__name__}: {str(error)[:100]}): run the probe again"
        ) from None


def _table(path: Path, head: Header, found: Sequence[Record]) -> LatencyTable:
    plan = head["plan"]
    asked = Setting(**head["setting"])
    if head["executed"] != asked.precision:
        raise DeviceError(
            f"{asked.runtime} executes {asked.precision} as {head['executed']} there: use "
            f"--precision {head['executed']}"
        )
    batches = [[Entry(**entry) for entry in entries] for entries in plan["entries"]]
    networks = [Architecture.from_dict(values) for values in plan["networks"]]
    results = {record["batch"]: batch_from_json(record) for record in found if "batch" in record}
    whole = [record for record in found if "network" in record]
    if len(results) < len(batches) or len(whole) < len(networks):
        raise TableError(
            f"{path} holds {len(results)} of {len(batches)} batches and {len(whole)} of "
            f"{len(networks)} networks: start the probe again, it goes on"
        )
    for result in results.values():
        _check([*result.timings.values(), *result.references.values()])
    facts: Facts = {"detected": head["machine"], "gpus": head["gpus"]}
    table = LatencyTable(conditions_from(head), facts=facts)
    for index, entries in enumerate(batches):
        absorb(table, entries_taken(entries, results[index]))
    for network, record in zip(networks, whole, strict=True):
        timed = network_from_json(record)
        _check([timed.timing, *timed.references.values()])
        absorb(table, network_taken(network, timed))
    space = SearchSpace.from_dict(plan["space"], str(path))
    table.refit(space_entries(space.template, space.widths, oa=True) if networks else ())
    peaks = [record["peak_mb"] for record in whole if "peak_mb" in record]
    if peaks:
        set_memory(table, networks, peaks)
    return table


def _check(timings: Iterable[Timing]) -> None:
    """Raise `ValueError` for a time that none can be."""
    for timing in timings:
        if not (math.isfinite(timing.ms) and timing.ms > 0 and math.isfinite(timing.interval)):
            raise ValueError(f"a time of {timing.ms} ms, uncertain by {timing.interval}")


def conditions_from(head: Header) -> Conditions:
    """Return the conditions under which a results file was measured."""
    plan = head["plan"]
    cpu = Detected.from_json(head["machine"])
    gpus = [Gpu(**gpu) for gpu in head["gpus"]]
    name, gpu = name_of(find_device(plan["device"]), cpu, gpus)
    height, width = plan["size"]
    asked = Setting(**head["setting"])
    found = Conditions.of(name, cpu, gpu, asked, head["runtime_version"], (height, width))
    return replace(found, forms=plan["forms"])
