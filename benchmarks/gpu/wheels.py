"""The wheels that are carried to a machine where nothing can be downloaded: which, and unpacking.

Not a stage. A wheel larger than a file may be travels in pieces made by `split`: NAME.whl.aa and so
on.
"""

import io
import sys
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

from packaging import tags
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
MOST_MIB = 60
"""Size of all wheels that are carried along."""
WHEELS = (
    "cyclopts", "docstring-parser", "rich-rst", "optuna", "alembic", "mako", "sqlalchemy",
    "colorlog", "pycocotools",
)  # fmt: skip
"""What HEAT needs and a machine with torch, onnx, pandas and transformers may lack."""
PYTHON, ABI = (3, 12), "cp312"
"""Of that machine; it runs Linux on x86-64."""
NEWEST_GLIBC = 39


def pins() -> dict[str, Version]:
    """Return the version of each wheel to carry."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    pairs = [line.split("==") for line in lines if "==" in line]
    known = {canonicalize_name(name): Version(version) for name, version in pairs}
    return {name: known[canonicalize_name(name)] for name in WHEELS}


def hint(module: str) -> str | None:
    """Return which wheel to carry for a module that is missing, if it is one of ours."""
    name = canonicalize_name(module)
    version = pins().get(name)
    return version and f"{name} is not installed: carry {name}=={version} (--wheels)"


def pieces(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each wheel in a folder, by its name."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.whl*")):
        found.setdefault(file.name[: file.name.index(".whl") + 4], []).append(file)
    return found


def fault(name: str, supported: Collection[tags.Tag], wanted: dict[str, Version]) -> str:
    """Return why a wheel of that name cannot be used, or nothing."""
    try:
        package, version, _, built_for = parse_wheel_filename(name)
    except ValueError as error:
        return str(error)
    if built_for.isdisjoint(supported):
        return "is for another Python or machine"
    if version != wanted.get(package, version):
        return f"is not the version {wanted[package]}"
    return ""


def carried_tags() -> set[tags.Tag]:
    """Return what wheels for the machine may be built for."""
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(5, NEWEST_GLIBC + 1)]
    platforms += [f"manylinux{name}_x86_64" for name in ("1", "2010", "2014")]
    return {
        *tags.cpython_tags(PYTHON, [ABI], platforms),
        *tags.compatible_tags(PYTHON, ABI, platforms),
    }


def check(folder: Path | None) -> int:
    """Print the wheels to carry; check a folder of them. Returns the exit code."""
    wanted = pins()
    for name, version in wanted.items():
        print(f"{name}=={version}")
    if folder is None:
        return 0
    found = pieces(folder)
    size = sum(file.stat().st_size for files in found.values() for file in files) / 2**20
    supported = carried_tags()
    faults = {name: fault(name, supported, wanted) for name in found}
    there = {parse_wheel_filename(name)[0] for name, wrong in faults.items() if not wrong}
    problems = [f"{name} {wrong}" for name, wrong in faults.items() if wrong]
    missing = [f"{name}=={wanted[name]}" for name in wanted if name not in there]
    if missing:
        problems.append(f"missing in {folder}: {', '.join(missing)}: pip download them")
    if size > MOST_MIB:
        problems.append(f"{size:.1f} MiB are more than {MOST_MIB}: carry less")
    print(f"{folder}: {len(found)} wheels, {size:.1f} MiB of at most {MOST_MIB}", file=sys.stderr)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def unpack(folder: Path, site: Path) -> None:
    """Unpack the wheels of a folder for PYTHONPATH; name those that cannot be, and go on.

    As pip does with wheels that hold packages alone. What is there already is left as it is.
    """
    site.mkdir(parents=True, exist_ok=True)
    supported = set(tags.sys_tags())
    found = pieces(folder)
    if not found:
        print(f"no wheels in {folder}", file=sys.stderr)
    for name, parts in found.items():
        wrong = fault(name, supported, {})
        last = site / f"{'-'.join(name.split('-')[:2])}.dist-info" / "RECORD"
        if not wrong and not last.exists():
            try:
                whole = io.BytesIO(b"".join(part.read_bytes() for part in parts))
                with zipfile.ZipFile(whole) as archive:
                    archive.extractall(site)
            except (OSError, zipfile.BadZipFile, zlib.error) as error:
                wrong = f"cannot be unpacked: {error}"
        if wrong:
            print(f"{name} {wrong}: left out", file=sys.stderr)
