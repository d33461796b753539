"""A bundle on ARM: its detect.py under user-mode emulation, with ARM wheels, beside this machine's.

    python benchmarks/aarch64.py demo/run/bundle-onnx demo/cells/val --work DIR

Needs a Debian or Ubuntu with apt and pip, on x86-64, and no rights: Python for arm64 and QEMU are
unpacked into DIR, nothing is installed. Classes must be the same, in the same order; boxes within
0.05 pixels, scores within 0.001. How long it takes says nothing about ARM and is not reported. The
last line is one JSON object; with --name it goes to benchmarks/results/aarch64-NAME.json.
"""

import argparse
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from result import RESULTS, tell

from supernet.errors import PromiseError

PYTHON = "3.11"
DEBS = (
    *(f"{part}{PYTHON}{end}" for part, end in (("python", "-minimal"), ("libpython", "-minimal"))),
    f"libpython{PYTHON}-stdlib",
    *("libc6", "libexpat1", "zlib1g", "libgcc-s1", "libstdc++6", "libffi8", "liblzma5"),
    *("libbz2-1.0", "libuuid1", "libsqlite3-0"),
)
WHEELS = ("numpy", "onnxruntime", "opencv-python-headless")
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
CPU = "cortex-a76"
CPU_INFO = (
    "processor\t: {}\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp "
    "cpuid asimdrdm lrcpc dcpop asimddp\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
    "CPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n"
)
"""Of a Cortex-A76: ONNX Runtime reads it, and crashes on the x86-64 text that QEMU passes on."""

ALLOWED_PX, ALLOWED_SCORE = 0.05, 0.001


def main() -> None:
    """Run the check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--name")
    options = parser.parse_args()
    work = options.work.resolve()
    qemu = prepare(work)
    images = [str(path.resolve()) for path in sorted(options.images.glob("*.jpg"))[: options.count]]
    script = [str(options.bundle.resolve() / "detect.py"), *images, "--threads", "1"]
    ours = detections([sys.executable, *script])
    python = str(work / "root/usr/bin" / f"python{PYTHON}")
    emulated = [qemu, "-cpu", CPU, "-L", str(work / "root"), python]
    theirs = detections([*emulated, *script], PYTHONPATH=str(work / "site"))
    code = "import platform; print(platform.machine())"
    machine = output([*emulated, "-c", code], {}).strip()
    box_px = score = 0.0
    for one, other in zip(ours, theirs, strict=True):
        if one["names"] != other["names"]:
            raise PromiseError(f"{one['file']}: {machine} finds other objects")
        box_px = max(box_px, differ(one["boxes_xyxy_px"], other["boxes_xyxy_px"]))
        score = max(score, differ(one["scores"], other["scores"]))
    if box_px > ALLOWED_PX or score > ALLOWED_SCORE:
        raise PromiseError(f"boxes differ by {box_px:.3f} px, scores by {score:.4f}")
    result = {
        "machine": f"{machine}, {CPU} by QEMU",
        "images": len(images),
        "objects": sum(len(each["scores"]) for each in theirs),
        "max_box_px": box_px,
        "max_score": score,
        "wheels": sorted(path.name for path in (work / "wheels").glob("*aarch64*.whl")),
    }
    tell(result, RESULTS / f"aarch64-{options.name}.json" if options.name else None)


def differ(ours: list[Any], theirs: list[Any]) -> float:
    """Return the largest difference of two lists of numbers, or of corners."""
    return float(np.abs(np.subtract(ours, theirs)).max(initial=0.0))


def prepare(work: Path) -> str:
    """Unpack Python, its libraries and packages for arm64, and QEMU; return the emulator."""
    site, wheels, debs = work / "site", work / "wheels", work / "debs"
    for folder in (
        debs,
        work / "root/proc",
        work / "apt/lists/partial",
        work / "apt/archives/partial",
    ):
        folder.mkdir(parents=True, exist_ok=True)
    own = {
        "Dir::State": work / "apt",
        "Dir::Cache": work / "apt",
        "Dir::State::status": "/dev/null",
    }
    own |= {"APT::Architecture": "arm64", "APT::Architectures": "arm64"}
    arm = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in own.items())]
    if not any(debs.glob("*.deb")):
        output([*arm, "update"], {})
        output([*arm, "download", *DEBS], {}, debs)
        output(["apt-get", "-qq", "download", "qemu-user-static"], {}, debs)
        for deb in debs.glob("*.deb"):
            output(
                ["dpkg", "-x", str(deb), str(work / "root" if "arm64" in deb.name else work)], {}
            )
    if not site.is_dir():
        tags = [f"--platform={name}_aarch64" for name in PLATFORMS]
        pip = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", *tags]
        output([*pip, f"--python-version={PYTHON}", "-d", str(wheels), *WHEELS], {})
        for wheel in wheels.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
    text = "".join(CPU_INFO.format(core) for core in range(os.cpu_count() or 1))
    (work / "root/proc/cpuinfo").write_text(text)
    return str(work / "usr/bin/qemu-aarch64-static")


def detections(command: list[str], **environment: str) -> list[dict[str, Any]]:
    """Return what a detect.py found, without the times."""
    found = json.loads(output(command, environment).splitlines()[-1])["detections"]
    return [{key: value for key, value in each.items() if key != "latency_ms"} for each in found]


def output(command: list[str], environment: dict[str, str], cwd: Path | None = None) -> str:
    """Return the standard output of a program that must succeed."""
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": "", **environment}, cwd=cwd, check=True,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return done.stdout


if __name__ == "__main__":
    main()
