"""Names this machine's CPU and counts its cores.

Python's standard library only: every bundle's `detect.py` and every probe carries this file's text.
"""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

ARCHITECTURE = re.compile(
    r"(armv?\d\w*|aarch64\w*|x86_64|i\d86|amd64|ppc\w*|s390x?|riscv\d*)( processor rev .*)?", re.I
)
"""Names that say how a CPU is programmed and not which it is, as ARM's kernels give them."""


def core_count() -> int:
    """Return the number of cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """Return the model of this machine's CPU."""
    return model_name(read_text("/proc/cpuinfo"))


def model_name(cpuinfo: str) -> str:
    """Return the CPU's model by /proc/cpuinfo, or as the system calls it where that has none.

    Virtual machines may hide the number ("AMD EPYC" of any generation, "aarch64"): then the numbers
    by which the vendor tells its designs apart follow in brackets.
    """

    def value(key: str) -> str:
        found = re.search(rf"^{key}[ \t]*:[ \t]*(.+)$", cpuinfo, re.M)
        return found[1].strip() if found else ""

    name = value("model name")
    if not name or ARCHITECTURE.fullmatch(name):
        name = value("Model") or name or sysctl("machdep.cpu.brand_string")
    name = name or platform.processor() or platform.machine()
    if re.search(r"\d", name.partition("@")[0]) and not ARCHITECTURE.fullmatch(name):
        return name
    keys = {"family": "cpu family", "model": "model", "implementer": "CPU implementer"}
    keys |= {"part": "CPU part"}
    numbers = [f"{what} {value(key)}" for what, key in keys.items() if value(key)]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def read_text(path: str | Path) -> str:
    """Return the text of a file of the system; "" where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def sysctl(name: str) -> str:
    """Return a value of macOS; "" on other systems."""
    if sys.platform != "darwin":
        return ""
    done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
    return done.stdout.strip()
