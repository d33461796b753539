"""How a device's name is resolved on this machine.

A name such as `cpu-i7` declares a machine (`device_file.py`). A measurement is always of this
machine, and its table has the device's name only if this machine matches it: no table can pretend
to be of another device.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from supernet.errors import DeviceError

from .device_file import Device, find_device, load_devices
from .probe.machine import Detected, Gpu, detect_cpu, detect_gpus, physical_cores, slug
from .probe.setting import Setting


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


def name_of(device: Device, cpu: Detected, gpus: Sequence[Gpu]) -> tuple[str, Gpu | None]:
    """Return the name of a machine that is profiled as `device`, and the GPU that is used.

    Raises `DeviceError` for a CUDA device where the machine has no GPU that matches, or several
    models, of which the runtimes would take any.
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
        if len({gpu.model for gpu in gpus}) > 1:
            raise DeviceError(
                f"this machine has {', '.join(gpu.model for gpu in gpus)}, and runtimes take the "
                "first by CUDA's order: set CUDA_VISIBLE_DEVICES to the UUID of one (nvidia-smi -L)"
            )
        return device.name if device.pattern else slug(matching[0].model), matching[0]
    return device.name if device.means(cpu.model) else cpu.slug, None


def names_of(target: Target) -> list[str]:
    """Return a target's name, and those of the device files that mean the same CPU."""
    if target.gpu is not None:
        return [target.name]
    cpus = [device for device in load_devices().values() if device.kind == "cpu"]
    same = [device.name for device in cpus if device.means(target.detected.model)]
    return list(dict.fromkeys([target.name, *same]))


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

    `threads` is those of the caller or the file, else the cores of the file's figures, else 0: all
    cores of that machine.
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
