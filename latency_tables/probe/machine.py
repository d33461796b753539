"""Detects this machine's CPU and GPUs, and what disturbs it while it measures.

Python's standard library only: the probe carries this file's text to devices that have no HEAT.
"""

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from deploy.edge.cpu import core_count, model_name, read_text, sysctl
from deploy.edge.engine import ask_driver

from .records import CpuRecord, DisturbanceRecord, GpuRecord

INFERENCE_FLAGS = frozenset(
    {"avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_vnni", "avx512_fp16", "avx_vnni"}
    | {"amx_bf16", "amx_int8", "amx_tile", "neon", "asimd", "asimddp", "i8mm", "bf16", "sve"}
)
"""Vector extensions by which runtimes choose their kernels."""

CGROUP = Path("/sys/fs/cgroup")
TOPOLOGY = Path("/sys/devices/system/cpu")
CPUFREQ = TOPOLOGY / "cpu0" / "cpufreq"

YARDSTICK_LOOPS = 60_000
"""Iterations of the loop that measures the core's frequency: about two milliseconds."""


@dataclass(frozen=True, slots=True)
class Detected:
    """The machine that measures, without its GPUs."""

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
        return slug(self.model)

    def to_json(self) -> CpuRecord:
        """Return the fields as JSON values."""
        return {
            "model": self.model,
            "cores": self.cores,
            "quota": self.quota,
            "governor": self.governor,
            "flags": list(self.flags),
            "memory_mb": self.memory_mb,
        }

    @classmethod
    def from_json(cls, record: CpuRecord) -> Self:
        """Read the result of `to_json`."""
        return cls(
            record["model"],
            record["cores"],
            record["quota"],
            record["governor"],
            tuple(record["flags"]),
            record["memory_mb"],
        )


@dataclass(frozen=True, slots=True)
class Gpu:
    """A CUDA device as nvidia-smi describes it."""

    model: str
    driver: str
    clocks: str
    """Highest graphics and memory clocks."""
    clock_now: str
    """Graphics clock when it was detected."""
    memory_mb: int

    def to_json(self) -> GpuRecord:
        """Return the fields as JSON values."""
        return {
            "model": self.model,
            "driver": self.driver,
            "clocks": self.clocks,
            "clock_now": self.clock_now,
            "memory_mb": self.memory_mb,
        }


def slug(model: str) -> str:
    """Return a model name as part of a file name."""
    words = re.sub(r"\((r|tm)\)|\bcpu\b|@ *[\d.]+ *[mg]hz|\bprocessor\b", " ", model.lower())
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-") or "cpu"


def detect_cpu() -> Detected:
    """Read this machine's CPU, quota and governor."""
    text = read_text("/proc/cpuinfo")
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.M)
    return Detected(
        model=model_name(text),
        cores=core_count(),
        quota=cpu_quota(),
        governor=read_text(CPUFREQ / "scaling_governor").strip() or "unknown",
        flags=tuple(sorted(INFERENCE_FLAGS & set(flags[1].split()))) if flags else (),
        memory_mb=_memory_mb(),
    )


def physical_cores(root: Path = TOPOLOGY) -> int:
    """Return how many physical cores this process may use, within its CPU quota.

    Hardware threads that share a core (SMT) count once; a quota of 2.5 cores is two.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        siblings = {
            read_text(root / f"cpu{number}" / "topology" / "thread_siblings_list") or str(number)
            for number in allowed
        }
        cores = len(siblings)
    else:
        cores = int(sysctl("hw.physicalcpu") or os.cpu_count() or 1)
    quota = cpu_quota()
    return max(1, min(cores, int(quota)) if quota else cores)


def cpu_quota(root: Path = CGROUP) -> float | None:
    """Return the cores that this process's control group may use (versions 1 and 2)."""
    limits = []
    for folder in _cgroups(root):
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
            if quota != "max":
                limits.append(int(quota) / int(period))
        with suppress(OSError, ValueError):
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8")
            period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8")
            if int(quota) > 0:
                limits.append(int(quota) / int(period))
    return min(limits, default=None)


def _cgroups(root: Path) -> list[Path]:
    """Return the folders of this process's control group and of all those above it."""
    folders = [root, root / "cpu", root / "cpu,cpuacct"]
    for line in read_text("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / controllers if controllers else root
        inner = top / path.lstrip("/")
        while inner != top and top in inner.parents:
            folders.append(inner)
            inner = inner.parent
    return folders


def _memory_mb() -> int:
    with suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return 0


def detect_gpus() -> tuple[Gpu, ...]:
    """Return the CUDA devices of this machine, without those that CUDA_VISIBLE_DEVICES hides.

    A driver that does not answer in time has none.
    """
    fields = "name,driver_version,clocks.gr,clocks.max.gr,clocks.max.mem,memory.total"
    return parse_gpus(ask_driver(fields))


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """Read nvidia-smi's lines of name, driver, clocks (now, highest, memory) and memory."""
    gpus = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != 6:
            continue
        name, driver, now, highest, memory_clock, memory = parts
        clocks = f"{highest} MHz, memory {memory_clock} MHz"
        total = int(memory) if memory.isdigit() else 0
        gpus.append(Gpu(name, driver, clocks, f"{now} MHz", total))
    return tuple(gpus)


def yardstick_ms() -> float:
    """Return the lowest of five timings of a fixed loop on one core.

    It changes only with the core's frequency.
    """
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(YARDSTICK_LOOPS):
            pass
        times.append((time.perf_counter() - start) * 1e3)
    return min(times)


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What disturbed the machine between two moments."""

    other_load: float
    """Cores that other processes kept busy, on average."""
    stolen: float
    """Steal time: share of the time that the hypervisor gave to other machines."""
    throttled: int
    """Periods in which the control group's quota stopped this process."""
    slowdown: float
    """`yardstick_ms` now over the lowest so far, minus one: frequency throttling."""

    def to_json(self) -> DisturbanceRecord:
        """Return the fields as JSON values."""
        return {
            "other_load": self.other_load,
            "stolen": self.stolen,
            "throttled": self.throttled,
            "slowdown": self.slowdown,
        }


class Watch:
    """Reads the machine's counters; `read` returns what changed since the last call."""

    def __init__(self) -> None:
        """Read the counters for the first time."""
        self._fastest = self._yardstick = yardstick_ms()
        self._last = self._counters()

    def read(self) -> Disturbance:
        """Return the disturbance since the last call, or since the start."""
        yardstick = yardstick_ms()
        self._fastest = min(self._fastest, yardstick)
        before, self._last = self._last, self._counters()
        wall, busy, stolen, own, throttled = (
            new - old for new, old in zip(self._last, before, strict=True)
        )
        total = max(wall, 1e-9)
        return Disturbance(
            other_load=round(max(0.0, (busy - own) / total), 3),
            stolen=round(max(0.0, stolen / total / (os.cpu_count() or 1)), 4),
            throttled=int(throttled),
            slowdown=round(yardstick / self._fastest - 1, 4),
        )

    @staticmethod
    def _counters() -> tuple[float, float, float, float, float]:
        """Return wall, busy, stolen and own seconds, and throttled periods."""
        busy = stolen = 0.0
        first = read_text("/proc/stat").partition("\n")[0].split()
        if len(first) > 8:
            tick = os.sysconf("SC_CLK_TCK")
            user, nice, system, _, _, irq, softirq, steal = (int(n) / tick for n in first[1:9])
            busy, stolen = user + nice + system + irq + softirq, steal
        own = os.times()
        own_s = own.user + own.system + own.children_user + own.children_system
        throttled = 0
        for folder in _cgroups(CGROUP):
            found = re.search(r"^nr_throttled (\d+)", read_text(folder / "cpu.stat"), re.M)
            throttled = max(throttled, int(found[1])) if found else throttled
        return time.monotonic(), busy, stolen, own_s, float(throttled)
