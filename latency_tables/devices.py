"""Declared devices (`devices/*.toml`), and how a device's name is resolved on this machine.

A name such as `cpu-i7` declares a machine. A measurement is always of this machine, and its table
has the device's name only if this machine matches it: no table can pretend to be of another device.
"""

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from deploy.edge.session import PRECISIONS
from supernet.errors import DeviceError

from .probe.machine import Detected, Gpu, detect_cpu, detect_gpus, physical_cores, slug
from .probe.setting import Setting

FOLDER = Path(__file__).parent / "devices"

KINDS = ("cpu", "cuda")


class FiguresValues(TypedDict):
    """The table `figures` of a device file: the fields of `Figures`."""

    source: str
    peak_gflops: dict[str, float]
    bandwidth_gbs: float
    cache_mb: float
    cache_gbs: float
    launch_us: float
    cores: int


class DeviceValues(TypedDict):
    """A device file: the fields of `Device` except its name, which is the file's."""

    title: str
    kind: str
    runtime: str
    precision: str
    pattern: NotRequired[str]
    threads: NotRequired[int]
    tensorrt_below: NotRequired[str]
    note: NotRequired[str]
    figures: NotRequired[FiguresValues]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Published performance figures of a device, for estimates."""

    source: str
    """Where the figures were published, and which of them are assumed."""
    peak_gflops: dict[str, float]
    """Peak multiplications and additions of all cores by precision, 10^9 per second."""
    bandwidth_gbs: float
    """Memory bandwidth, 10^9 bytes per second."""
    cache_mb: float
    """Size of the last-level cache in MiB."""
    cache_gbs: float
    """Bandwidth of that cache, 10^9 bytes per second."""
    launch_us: float
    """Cost of starting one operator, microseconds."""
    cores: int
    """CPU cores that `peak_gflops` counts; 1 for a GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A declared device: one file in `latency_tables/devices/`."""

    name: str
    title: str
    kind: str
    """cpu or cuda."""
    pattern: str
    """Regular expression that the detected model name must match; empty for any."""
    runtime: str
    """Default runtime."""
    precision: str
    """Default precision."""
    threads: int
    """Default number of threads; 0 for all physical cores of this machine."""
    tensorrt_below: str = ""
    """First version of TensorRT that no longer supports the GPU; empty if all do."""
    note: str = ""
    figures: Figures | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A device resolved on this machine."""

    name: str
    """Name of the measured machine: the device's only if this machine is that device."""
    device: Device
    detected: Detected
    threads: int
    runtime: str
    precision: str
    warnings: tuple[str, ...] = ()
    gpu: Gpu | None = None
    here: bool = True
    """Whether it is this machine; if not, nothing can be measured and `detected` is declared."""
    spinning: str = "brief"
    """How long idle threads spin: brief, always or never."""
    pinning: bool = False
    """Whether each thread is pinned to one core."""

    @property
    def setting(self) -> Setting:
        """How models are executed."""
        return Setting(
            runtime=self.runtime,
            precision=self.precision,
            threads=self.threads,
            device=self.device.kind,
            spinning=self.spinning,
            pinning=self.pinning,
        )


def load_devices() -> dict[str, Device]:
    """Read every device file."""
    return {path.stem: load_device(path) for path in sorted(FOLDER.glob("*.toml"))}


def load_device(path: Path) -> Device:
    """Read a device file; an unknown key or value is a `DeviceError` that names it."""
    try:
        values = cast(DeviceValues, tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DeviceError(f"{path} is no device file ({error}): correct it") from None
    _check_keys(path, values, Device, required={"title", "kind", "runtime", "precision"})
    figures = values.get("figures")
    if figures is not None:
        _check_keys(path, figures, Figures, required={f.name for f in fields(Figures)})
    device = Device(
        name=path.stem,
        title=values["title"],
        kind=values["kind"],
        pattern=values.get("pattern", ""),
        runtime=values["runtime"],
        precision=values["precision"],
        threads=values.get("threads", 0),
        tensorrt_below=values.get("tensorrt_below", ""),
        note=values.get("note", ""),
        figures=Figures(**figures) if figures is not None else None,
    )
    for what, value, allowed in (
        ("kind", device.kind, KINDS),
        ("precision", device.precision, PRECISIONS),
    ):
        if value not in allowed:
            raise DeviceError(f"{path}: {what} = {value!r}: one of {', '.join(allowed)}")
    try:
        re.compile(device.pattern)
    except re.error as error:
        raise DeviceError(f"{path}: pattern = {device.pattern!r} ({error}): correct it") from None
    return device


def _check_keys(path: Path, values: Mapping[str, object], kind: type, required: set[str]) -> None:
    known = {item.name for item in fields(kind)} - {"name"}
    for key in values:
        if key not in known:
            raise DeviceError(f"{path}: unknown key {key!r}: one of {', '.join(sorted(known))}")
    missing = sorted(required - set(values))
    if missing:
        raise DeviceError(f"{path}: {', '.join(missing)} missing: add it")


def find_device(name: str) -> Device:
    """Return a declared device by name."""
    devices = load_devices()
    if name not in devices:
        raise DeviceError(
            f"unknown device {name!r}: one of {', '.join(devices)}; this machine is --device cpu"
        )
    return devices[name]


def name_of(device: Device, cpu: Detected, gpus: Sequence[Gpu]) -> tuple[str, Gpu | None]:
    """Return the name of a machine that is profiled as `device`, and the GPU that is used.

    Raises `DeviceError` for a CUDA device where the machine has no GPU that matches.
    """
    if device.kind == "cuda":
        matching = [gpu for gpu in gpus if re.search(device.pattern, gpu.model, re.I)]
        if not matching:
            here = ", ".join(gpu.model for gpu in gpus) if gpus else "no CUDA GPU"
            raise DeviceError(
                f"{device.name} needs {device.title}, this machine has {here}: reach it with "
                "--host USER@BOX, carry it by --pack FILE, estimate it with --estimate, or profile "
                "this machine with --device cpu"
            )
        return device.name if device.pattern else slug(matching[0].model), matching[0]
    known = device.pattern and re.search(device.pattern, cpu.model, re.I)
    return device.name if known else cpu.slug, None


def resolve(
    name: str,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
) -> Target:
    """Resolve `--device NAME` on this machine.

    Raises `DeviceError` for an unknown name, and for a GPU that this machine lacks.
    """
    device = find_device(name)
    detected = detect_cpu()
    found, gpu = name_of(device, detected, detect_gpus())
    warnings: tuple[str, ...] = ()
    if device.pattern and found != device.name:
        warnings = (
            f"{name} means {device.title}; this machine is {detected.model} with "
            f"{detected.cores} cores: it is measured and named as {found}",
        )
    wanted = threads if threads is not None else device.threads or physical_cores()
    if wanted < 1:
        raise DeviceError(f"--threads {wanted}: this machine gives {detected.cores} cores")
    if threads is not None and threads > detected.cores:
        raise DeviceError(f"--threads {threads}: this machine gives {detected.cores} cores")
    if detected.quota and wanted > math.ceil(detected.quota):
        warnings += (
            f"{wanted} threads, but the container may use {detected.quota:g} cores: the quota will "
            f"stop them; --threads {math.ceil(detected.quota)} is steadier",
        )
    return Target(
        name=found,
        device=device,
        detected=detected,
        threads=min(wanted, detected.cores),
        runtime=runtime or device.runtime,
        precision=precision or device.precision,
        warnings=warnings,
        gpu=gpu,
    )


def declared(
    name: str,
    *,
    runtime: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
) -> Target:
    """Return a device as its file describes it, whether or not it is this machine.

    `threads` is 0, for all cores of that machine, where neither the caller nor the file sets it.
    """
    device = find_device(name)
    cores = device.figures.cores if device.figures and device.kind == "cpu" else 0
    if threads is not None and (threads < 1 or (cores and threads > cores)):
        raise DeviceError(f"--threads {threads}: {device.title} has {cores or 'its own'} cores")
    wanted = threads or device.threads or (device.figures.cores if device.figures else 0)
    facts = Detected(
        model=device.title, cores=wanted, quota=None, governor="unknown", flags=(), memory_mb=0
    )
    gpu = Gpu(device.title, "unknown", "unknown", "unknown", 0) if device.kind == "cuda" else None
    return Target(
        name=name,
        device=device,
        detected=facts,
        threads=wanted,
        runtime=runtime or device.runtime,
        precision=precision or device.precision,
        gpu=gpu,
        here=False,
    )
