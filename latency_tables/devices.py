"""Devices: what a name promises, and what this machine really is.

A name such as `cpu-i7` says which machine is meant. What is measured is always this machine, and
is named as what it is: a table can never pretend to be of another device.
"""

import os
import platform
import re
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import psutil

from supernet.errors import DeviceError

FOLDER = Path(__file__).parent / "devices"


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
    """Runtime used unless another is asked for."""
    precision: str
    threads: int
    """Threads used unless others are asked for; 0 for all cores of this machine."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Detected:
    """Facts of the machine that measures."""

    model: str
    cores: int
    """Cores this process may use."""
    quota: float | None
    """CPU quota of the container in cores, if there is one."""
    governor: str
    flags: tuple[str, ...]
    """Vector extensions that matter for inference."""
    memory_mb: int

    @property
    def slug(self) -> str:
        """The machine's own name for files, from its model."""
        words = re.sub(r"\((r|tm)\)|\bcpu\b|@.*|\bprocessor\b", " ", self.model.lower())
        return re.sub(r"[^a-z0-9]+", "-", words).strip("-") or "cpu"


@dataclass(frozen=True, slots=True)
class Target:
    """A device resolved on this machine."""

    device: Device
    detected: Detected
    threads: int
    runtime: str
    warnings: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the measured machine is called: the device's name only if it is that device."""
        matches = self.device.pattern and not self.warnings
        return self.device.name if matches else self.detected.slug


def load_devices() -> dict[str, Device]:
    """Read every device file."""
    devices = {}
    for path in sorted(FOLDER.glob("*.toml")):
        try:
            device = Device(name=path.stem, **tomllib.loads(path.read_text(encoding="utf-8")))
        except (tomllib.TOMLDecodeError, TypeError) as error:
            raise DeviceError(f"{path} is no device file ({error})") from None
        devices[device.name] = device
    return devices


def detect_cpu() -> Detected:
    """Read this machine's CPU, quota and governor."""
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    info = Path("/proc/cpuinfo")
    text = info.read_text(encoding="utf-8") if info.exists() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    flags = re.search(r"^flags\s*:\s*(.+)$", text, re.M)
    known = {"avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8"}
    return Detected(
        model=model[1].strip() if model else platform.processor() or platform.machine(),
        cores=available_cores(),
        quota=_cgroup_quota(),
        governor=governor.read_text(encoding="utf-8").strip() if governor.exists() else "unknown",
        flags=tuple(sorted(known & set(flags[1].split()))) if flags else (),
        memory_mb=psutil.virtual_memory().total // 2**20,
    )


def available_cores() -> int:
    """Return the number of cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroup_quota() -> float | None:
    path = Path("/sys/fs/cgroup/cpu.max")
    if not path.exists():
        return None
    quota, period = path.read_text(encoding="utf-8").split()
    return None if quota == "max" else int(quota) / int(period)


def detect_gpus() -> tuple[str, ...]:
    """Return the names of CUDA devices, by nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return tuple(line.strip() for line in done.stdout.splitlines() if line.strip())


def resolve(name: str, *, runtime: str | None = None, threads: int | None = None) -> Target:
    """Return what `--device NAME` means on this machine.

    Raises `DeviceError` for an unknown name, and for a device that is not there.
    """
    devices = load_devices()
    if name not in devices:
        raise DeviceError(
            f"unknown device {name!r}: one of {', '.join(devices)}; this machine is --device cpu"
        )
    device = devices[name]
    if device.kind == "cuda":
        gpus = detect_gpus()
        found = ", ".join(gpus) if gpus else "no CUDA GPU"
        raise DeviceError(
            f"{name} needs {device.title}, this machine has {found}: run heat profile on that "
            "machine and carry its table here, or profile this one with --device cpu"
        )
    detected = detect_cpu()
    warnings: tuple[str, ...] = ()
    if device.pattern and not re.search(device.pattern, detected.model, re.I):
        warnings = (
            f"{name} means {device.title}; this machine is {detected.model} with "
            f"{detected.cores} cores: it is measured and named as {detected.slug}",
        )
    wanted = threads if threads is not None else device.threads or detected.cores
    if wanted < 1:
        raise DeviceError(f"--threads {wanted}: at least 1")
    if threads is not None and threads > detected.cores:
        raise DeviceError(f"--threads {threads}: this machine gives {detected.cores} cores")
    return Target(
        device, detected, min(wanted, detected.cores), runtime or device.runtime, warnings
    )
