"""What may keep HEAT from working on a machine, and how to fix it: `heat doctor`.

Looks, and runs one small graph in every runtime that is installed. Changes nothing. Works where
HEAT was installed for the edge only: what needs more is imported where it is used.
"""

import importlib.metadata
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from packaging.requirements import Requirement
from packaging.version import Version
from rich.table import Table
from rich.text import Text

from deploy.edge.runtimes import open_session
from deploy.edge.session import ALSO_NAMED, installed, installed_runtimes
from latency_tables.device_file import Device, load_devices
from latency_tables.devices import resolve
from latency_tables.probe.machine import (
    Detected,
    Gpu,
    Watch,
    detect_cpu,
    detect_gpus,
    physical_cores,
)
from latency_tables.threads import ThreadTiming, best_count, describe, thread_check, trouble
from supernet.errors import DeviceError, HeatError, UserError

from ..views.terminal import terminal
from ..workspace import Workspace

Level = Literal["ok", "warning", "wrong"]

EXTRAS = ("edge", "openvino", "build")
"""Extras whose packages are looked for."""
BUSY_CORES = 0.3
"""Load of other processes at which a profile is worth waiting with."""
WATCHED_S = 0.5
"""How long other processes are watched."""
ROOM_MB = 2000
"""A supernet's checkpoints, a table and a bundle fit in this."""
STEADY = ("performance", "unknown")
"""Governors that keep the clock, and none at all."""
SIMD = {"avx2", "avx512f", "neon", "asimd"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    level: Level
    seen: str
    fix: str = ""
    """The command that fixes it, where something must be fixed."""


def examine(workspace: Workspace, device: Device | None = None) -> list[Finding]:
    """Look at packages, runtimes, the machine, what `device` needs, and the workspace."""
    cpu, gpus = detect_cpu(), detect_gpus()
    return [
        *packages(),
        *runtimes(),
        *processor(cpu),
        *threads(cpu, physical_cores()),
        *graphics(gpus, device),
        telemetry(Path.home() / "intel" / "openvino_telemetry"),
        disk(workspace.root),
        *tables(workspace),
    ]


def show(findings: Sequence[Finding]) -> None:
    """Print what was looked at, and what fixes what."""
    table = Table(title="heat doctor")
    for column in ("what", "", "seen", "fix"):
        table.add_column(column)
    styles = {"ok": "green", "warning": "yellow", "wrong": "red"}
    for finding in findings:
        level = Text(finding.level, styles[finding.level])
        table.add_row(finding.what, level, finding.seen, finding.fix)
    terminal().print(table)


def packages() -> Iterator[Finding]:
    """Compare what is installed with what HEAT asks for."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", "ok", version)
    for wanted in map(Requirement, importlib.metadata.requires("heatdetr") or ()):
        marker = wanted.marker
        if wanted.name == "heatdetr":  # an extra that names others
            continue
        extras = [""] if marker is None else [e for e in EXTRAS if marker.evaluate({"extra": e})]
        for extra in extras:
            yield _package(wanted, extra)


def _package(wanted: Requirement, extra: str) -> Finding:
    name, version = installed(wanted.name, *ALSO_NAMED.get(wanted.name, ()))
    if version is None:
        fix = f"pip install 'heatdetr[{extra}]'" if extra else "pip install heatdetr"
        return Finding(wanted.name, "warning" if extra else "wrong", "not installed", fix)
    if wanted.specifier.contains(version, prereleases=True):
        return Finding(wanted.name, "ok", version)
    seen = f"{version}, {wanted.specifier} is needed"
    return Finding(wanted.name, "wrong", seen, f"pip install '{name}{wanted.specifier}'")


def runtimes() -> Iterator[Finding]:
    """Run a graph of one addition in every runtime for CPUs that is installed."""
    try:
        from supernet.graph.writer import GraphWriter
    except ModuleNotFoundError:  # no onnx: `packages` says so
        return
    graph = GraphWriter()
    x = graph.input("x", (1, 4))
    model = graph.model([("y", graph.add(x, x), "float32")]).SerializeToString()
    ones = np.ones((1, 4), np.float32)
    versions = installed_runtimes()
    for runtime in ("onnxruntime", "openvino"):
        if versions[runtime] is None:
            continue
        try:
            with open_session(runtime, model, 1) as session:
                (y,) = session.run({"x": ones})
            works, seen = bool(np.array_equal(y, ones + ones)), f"1 + 1 = {y.flat[0]:g}"
        except (HeatError, ImportError) as error:
            works, seen = False, str(error)
        package, _ = installed(runtime, *ALSO_NAMED.get(runtime, ()))
        fix = "" if works else f"pip install --force-reinstall {package}"
        yield Finding(f"{runtime} runs", "ok" if works else "wrong", seen, fix)


def processor(cpu: Detected) -> Iterator[Finding]:
    """Look at what makes a CPU's timings slow or unsteady."""
    slow = not SIMD & set(cpu.flags)
    yield Finding(
        "CPU",
        "warning" if slow else "ok",
        f"{cpu.model}, {cpu.cores} cores, {' '.join(cpu.flags) or 'no vector extensions'}",
        "runtimes will be slow: take another machine" if slow else "",
    )
    if cpu.quota and cpu.quota < cpu.cores:
        yield Finding(
            "CPU quota",
            "warning",
            f"{cpu.quota:g} of {cpu.cores} cores: more threads are stopped now and then",
            f"heat profile --threads {max(1, int(cpu.quota))}",
        )
    if cpu.governor not in STEADY:
        yield Finding(
            "governor",
            "warning",
            f"{cpu.governor}: the clock changes while it is measured",
            "sudo cpupower frequency-set -g performance",
        )
    watch = Watch()
    time.sleep(WATCHED_S)
    load = watch.read().other_load
    busy = load >= BUSY_CORES
    yield Finding(
        "other load",
        "warning" if busy else "ok",
        f"{load:.1f} cores are kept busy by others",
        "measure when they have ended: heat profile" if busy else "",
    )


def threads(cpu: Detected, physical: int) -> Iterator[Finding]:
    """Say how many threads HEAT uses, and whether as many serve better than one."""
    if physical < cpu.cores:
        seen = f"{cpu.cores} hardware threads, {physical} of them on cores of their own"
        yield Finding("cores", "ok", f"{seen}: {physical} threads by default")
    else:
        yield Finding("cores", "ok", f"{physical} physical: as many threads by default")
    if physical > 1 and installed_runtimes()["onnxruntime"] is not None:
        with suppress(ModuleNotFoundError):  # what makes the graph is not installed on the edge
            yield steadiness(_time_threads(physical))


def steadiness(timings: Mapping[int, ThreadTiming]) -> Finding:
    """Judge the times of a small network with one thread and with several."""
    wrong, seen = trouble(timings), describe(timings)
    if not wrong:
        return Finding("threads", "ok", seen)
    fix = f"--threads {best_count(timings)} for profile, detect and bench"
    return Finding("threads", "warning", f"{wrong} ({seen})", fix)


def _time_threads(most: int) -> dict[int, ThreadTiming]:
    from latency_tables.models import write_network
    from supernet.heatdetr.architecture import preset

    size = (256, 256)
    model = write_network(preset("nano", input_size=size))
    feeds = {"image": np.zeros((1, *size, 3), np.uint8)}
    return thread_check(model.onnx, feeds, (1, most))


def graphics(gpus: tuple[Gpu, ...], device: Device | None) -> Iterator[Finding]:
    """Look at GPUs, and at whether the TensorRT that is installed builds for them."""
    for gpu in gpus:
        yield Finding("GPU", "ok", f"{gpu.model}, driver {gpu.driver}, {gpu.memory_mb} MiB")
    if not gpus:
        yield Finding("GPU", "ok", "no CUDA GPU")
    version = installed_runtimes()["tensorrt"]
    meant = [
        known
        for known in load_devices().values()
        if known.tensorrt_below
        and (
            (device is not None and known.name == device.name)
            or any(re.search(known.pattern, gpu.model, re.I) for gpu in gpus)
        )
    ]
    for known in meant:
        fix = f"pip install 'tensorrt<{known.tensorrt_below}' on the machine that builds"
        if version is None:
            seen = f"{known.title} needs TensorRT below {known.tensorrt_below}; none is here"
            yield Finding("TensorRT", "warning", seen, fix)
        elif Version(version) >= Version(known.tensorrt_below):
            seen = f"{version} builds nothing for {known.title}: below {known.tensorrt_below} only"
            yield Finding("TensorRT", "wrong", seen, fix)
        else:
            yield Finding("TensorRT", "ok", f"{version}, for {known.title}")


def telemetry(consent: Path) -> Finding:
    """Say whether OpenVINO reports what it does; HEAT never does, nor OpenVINO within HEAT."""
    try:
        answer = consent.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        answer = ""
    if answer == "0":
        return Finding("OpenVINO telemetry", "ok", "declined")
    seen = "its tools report what they do to Intel" if answer == "1" else "not declined"
    level: Level = "warning" if answer == "1" else "ok"
    seen += ": off in HEAT, on where other programs import openvino"
    return Finding("OpenVINO telemetry", level, seen, "opt_in_out --opt_out")


def disk(root: Path) -> Finding:
    """Look at the room where the workspace is to be."""
    place = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    free_mb = shutil.disk_usage(place).free // 2**20
    if free_mb >= ROOM_MB:
        return Finding("disk", "ok", f"{free_mb} MiB are free")
    seen = f"{free_mb} MiB are free under {place}"
    return Finding("disk", "warning", seen, "make room, or give another --out")


def tables(workspace: Workspace) -> Iterator[Finding]:
    """Say what the workspace holds, and which of its tables serve this machine still."""
    try:
        stages = workspace.stages()
    except UserError as error:
        yield Finding("workspace", "wrong", str(error), "give another --out")
        return
    yield Finding("workspace", "ok", f"{workspace.root}: {', '.join(stages) or 'nothing yet'}")
    for path in sorted(workspace.tables.glob("*.csv")):
        try:
            yield _table(path)
        except ModuleNotFoundError as error:
            yield Finding("table", "ok", f"{path.stem}: not read without {error.name}")


def _table(path: Path) -> Finding:
    """Compare a table with this machine, found by the name that the table was measured under."""
    from latency_tables.store import conditions_of
    from latency_tables.table_file import read_table

    try:
        table = read_table(path)
    except HeatError as error:
        return Finding("table", "wrong", str(error), "heat profile")
    if table.estimated:
        return Finding("table", "ok", f"{path.stem}: ESTIMATED, not measured")
    conditions = table.conditions
    elsewhere = Finding("table", "ok", f"{path.stem}: of another machine")
    kind = "cuda" if conditions.driver else "cpu"
    name = conditions.device if conditions.device in load_devices() else kind
    try:
        target = resolve(name, runtime=conditions.runtime, precision=conditions.precision)
    except DeviceError:
        return elsewhere
    if target.name != conditions.device:
        return elsewhere
    cores = target.detected.cores
    again = replace(conditions, threads=min(conditions.threads, cores)).command(name)
    if conditions.threads > cores:
        seen = f"{path.stem} is stale: threads {conditions.threads}, this machine gives {cores}"
        return Finding("table", "warning", seen, again)
    target = replace(
        target,
        threads=conditions.threads,
        spinning=conditions.spinning,
        pinning=conditions.pinning,
    )
    try:
        here = conditions_of(target, conditions.input_size)
    except UserError as error:  # its runtime is gone
        return Finding("table", "warning", f"{path.stem} is stale: {error}", again)
    different = here.differences(conditions)
    if different:
        return Finding("table", "warning", f"{path.stem} is stale: {different}", again)
    return Finding("table", "ok", path.stem)
