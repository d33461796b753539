"""The files that declare devices (`devices/*.toml`): figures and times that were published."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NotRequired, TypedDict, cast

from deploy.edge.session import PRECISIONS
from supernet.errors import DeviceError, did_you_mean

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


class PublishedValues(TypedDict):
    """A table of the array `published` of a device file: the fields of `Published`."""

    network: str
    ms: float
    runtime: str
    precision: str
    source: str
    batch: NotRequired[int]
    preset: NotRequired[str]
    input_size: NotRequired[list[int]]
    gmacs: NotRequired[float]
    maps_m: NotRequired[float]
    weights_m: NotRequired[float]
    nodes: NotRequired[int]


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
    published: NotRequired[list[PublishedValues]]


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
class Published:
    """The time of a whole network on a device, as somebody published it.

    A preset of HEAT's is priced entry by entry, any other network by its counts.
    """

    network: str
    ms: float
    """Milliseconds of one batch."""
    runtime: str
    precision: str
    source: str
    batch: int = 1
    preset: str = ""
    """Name of a preset, with original self-attention in its global block."""
    input_size: tuple[int, int] = (0, 0)
    """Height and width in pixels of a preset's input."""
    gmacs: float = 0.0
    """Multiply-adds of one image, 10^9."""
    maps_m: float = 0.0
    """Numbers that all nodes read and write for one image, 10^6."""
    weights_m: float = 0.0
    """Parameters, 10^6."""
    nodes: int = 0


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
    published: tuple[Published, ...] = ()
    """Whole networks that others have timed on it."""

    def means(self, model: str) -> bool:
        """Return whether it describes this CPU or GPU model; without a pattern, none."""
        return bool(self.pattern) and re.search(self.pattern, model, re.I) is not None


def load_devices() -> dict[str, Device]:
    """Read every device file."""
    return {path.stem: load_device(path) for path in sorted(FOLDER.glob("*.toml"))}


def load_device(path: Path) -> Device:
    """Read a device file; an unknown key or value is a `DeviceError` that names it."""
    try:
        values = cast(DeviceValues, tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
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
        published=tuple(_published(path, point) for point in values.get("published", ())),
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


def _published(path: Path, values: PublishedValues) -> Published:
    _check_keys(
        path, values, Published, required={"network", "ms", "runtime", "precision", "source"}
    )
    height, width = values.get("input_size", (0, 0))
    return Published(**{**values, "input_size": (height, width)})  # type: ignore[arg-type]


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
            f"unknown device {name!r}{did_you_mean(name, devices)}: one of {', '.join(devices)}; "
            "this machine is --device cpu"
        )
    return devices[name]
