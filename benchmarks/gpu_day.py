"""Everything to do with a GPU in its few minutes: stages in order of worth, each on disk at once.

    python benchmarks/gpu_day.py --out DIR [--data DIR] [--minutes 9] [--wheel-folder DIR]
    python benchmarks/gpu_day.py --wheels [DIR]     which wheels to carry there, and their size
    python benchmarks/gpu_day.py --rehearse --out DIR

The stages are the scripts in benchmarks/gpu/. Each runs in a process of its own with a share of the
time that is left, and writes DIR/STAGE.json as it goes on: one that fails, or is stopped at its
limit, leaves what it has, and the next one starts. A second call goes on with the stages that are
not done. Prints one JSON line for each stage, and all of DIR is in DIR.tar.gz after each.

The machine needs torch with CUDA and the packages that `--wheels` does not list; wheels in
--wheel-folder are installed into DIR first (pieces made by `split`, NAME.whl.aa and so on, are
joined). With --rehearse all stages run on the CPU with tiny sizes. Exit code 1 if a stage is not
done.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # HEAT need not be installed

from latency_tables.probe.machine import detect_gpus
from supernet.atomic import replacing, write_text

STAGES = Path(__file__).parent / "gpu"
MOST_MIB = 60
"""Size of all wheels that are carried along."""
WHEELS = (
    "cyclopts", "docstring_parser", "rich-rst", "optuna", "alembic", "Mako", "SQLAlchemy",
    "colorlog", "pycocotools",
)  # fmt: skip
"""What HEAT needs and a machine with torch, onnx, pandas and transformers may lack."""
GRACE_S = 4.0
"""Seconds between asking a stage to end and ending it."""


@dataclass(frozen=True)
class Planned:
    """A stage, and how much of the time it may have."""

    name: str
    share: float
    """Seconds of nine minutes; what earlier stages leave over is shared by those after them."""
    least_s: float
    """Seconds under which it is not started."""


PLAN = (
    Planned("here", 15, 3),
    Planned("gpu_tests", 60, 15),
    Planned("table", 150, 45),
    Planned("onnx_cuda", 30, 10),
    Planned("race", 70, 20),
    Planned("training", 190, 60),
    Planned("nccl", 25, 12),
)


def pins() -> dict[str, str]:
    """Return the version of each wheel to carry."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    known = dict(line.lower().replace("_", "-").split("==") for line in lines if "==" in line)
    return {name: known[name.lower().replace("_", "-")] for name in WHEELS}


def wheels(folder: Path | None) -> int:
    """Print the wheels to carry; check a folder of them."""
    wanted = pins()
    for name, version in wanted.items():
        print(f"{name}=={version}")
    if folder is None:
        return 0
    files = sorted(folder.glob("*.whl*"))
    size = sum(file.stat().st_size for file in files) / 2**20
    there = {re.sub(r"[-_.]+", "-", file.name.split("-")[0]).lower() for file in files}
    missing = [n for n in wanted if re.sub(r"[-_.]+", "-", n).lower() not in there]
    print(f"{folder}: {len(files)} files, {size:.1f} MiB of at most {MOST_MIB}", file=sys.stderr)
    if missing:
        print(f"missing in {folder}: {', '.join(missing)}: pip download them", file=sys.stderr)
    if size > MOST_MIB:
        print(f"{size:.1f} MiB are more than {MOST_MIB}: carry less", file=sys.stderr)
    return 1 if missing or size > MOST_MIB else 0


def installed(folder: Path, out: Path) -> Path:
    """Install the wheels of a folder, pieces joined, and return where they are."""
    site, joined = out / "site", out / "wheels"
    joined.mkdir(parents=True, exist_ok=True)
    pieces: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.whl*")):
        pieces.setdefault(file.name[: file.name.index(".whl") + 4], []).append(file)
    for name, parts in pieces.items():
        with replacing(joined / name) as temporary, temporary.open("wb") as stream:
            for part in parts:
                stream.write(part.read_bytes())
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps",
        "--no-compile", "--upgrade", "--target", str(site), *map(str, sorted(joined.glob("*.whl"))),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the wheels of {folder} do not install: {done.stderr.strip()[-300:]}")
    return site


def run_stage(planned: Planned, options: argparse.Namespace, seconds: float, path: str) -> str:
    """Run a stage and return how it ended: done, failed, or stopped at its limit."""
    command = [
        sys.executable, str(STAGES / f"{planned.name}.py"), "--out", str(options.out),
        "--seconds", f"{max(1.0, seconds - GRACE_S):.1f}",
    ]  # fmt: skip
    if options.rehearse:
        command.append("--rehearse")
    if options.data is not None:
        command += ["--data", str(options.data)]
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    log = options.out / f"{planned.name}.log"
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=environment, cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(timeout=seconds)
            return "done" if code == 0 else "failed"
        except subprocess.TimeoutExpired:
            return "stopped at its limit"
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a stage and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=GRACE_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def kept(out: Path, name: str) -> dict[str, Any]:
    """Return what a stage has left, if anything."""
    try:
        found: dict[str, Any] = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError):
        return {}


def last_line(out: Path, name: str) -> str:
    """Return the last line of a stage's log, what it died of; a missing wheel by its name."""
    log = out / f"{name}.log"
    lines = (
        log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if log.exists()
        else []
    )
    last = lines[-1][:300] if lines else "no output"
    missing = re.search(r"No module named '(\w+)", last)
    if missing and missing[1] in pins():
        return f"{missing[1]} is not installed: carry {missing[1]}=={pins()[missing[1]]} (--wheels)"
    return last


def pack(out: Path) -> None:
    """Put the results into one file; it is replaced at once."""
    with (
        replacing(out.with_name(f"{out.name}.tar.gz")) as temporary,
        tarfile.open(temporary, "w:gz") as archive,
    ):
        for file in sorted(out.rglob("*")):
            inside = file.relative_to(out)
            heavy = file.suffix in (".safetensors", ".pt", ".whl", ".jpg", ".onnx")
            if file.is_file() and not heavy and inside.parts[0] not in ("site", "wheels"):
                archive.add(file, Path(out.name) / inside)


def main() -> int:
    """Run the stages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "gpu-day")
    parser.add_argument("--data", type=Path, help="detection set to train on")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", default="", help="stages, separated by commas")
    parser.add_argument("--again", action="store_true", help="stages that are done, too")
    parser.add_argument("--wheel-folder", type=Path, help="wheels to install first")
    parser.add_argument("--wheels", nargs="?", const="", help="list them; check the folder DIR")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes")
    options = parser.parse_args()
    if options.wheels is not None:
        return wheels(Path(options.wheels) if options.wheels else None)
    unknown = set(filter(None, options.only.split(","))) - {planned.name for planned in PLAN}
    if unknown:
        parser.error(f"--only {', '.join(sorted(unknown))}: of {', '.join(p.name for p in PLAN)}")
    end = time.monotonic() + 60 * options.minutes
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    path = [str(ROOT), str(ROOT / "benchmarks")]
    if options.wheel_folder is not None:
        path.insert(0, str(installed(options.wheel_folder, options.out)))
    path += filter(None, [os.environ.get("PYTHONPATH", "")])
    only = [name for name in options.only.split(",") if name]
    todo = [planned for planned in PLAN if not only or planned.name in only]
    well = True
    while todo:
        planned = todo.pop(0)
        left = end - time.monotonic()
        before = kept(options.out, planned.name)
        same = before.get("rehearsed") == options.rehearse and before.get("state") == "done"
        started = time.monotonic()
        seconds = left * planned.share / (planned.share + sum(later.share for later in todo))
        if same and not options.again:
            state = "done before"
        elif left < planned.least_s and not options.rehearse:
            state = f"not started: {left:.0f} s are left, it needs {planned.least_s:.0f}"
        elif not options.rehearse and not detect_gpus():
            state = "not started: no GPU (nvidia-smi lists none)"
        else:
            state = run_stage(
                planned, options, max(seconds, planned.least_s), os.pathsep.join(path)
            )
        ended = {"state": state.split(":")[0], "limit_s": round(seconds, 1)}
        if state not in ("done", "done before"):
            well = False
            ended["why"] = state if ":" in state else last_line(options.out, planned.name)
        if "not started" not in state and state != "done before":
            found = kept(options.out, planned.name) or {"stage": planned.name}
            write_text(
                options.out / f"{planned.name}.json",
                json.dumps({**found, **ended}, indent=1) + "\n",
            )
            pack(options.out)
        line = {"stage": planned.name, **ended, "seconds": round(time.monotonic() - started, 1)}
        print(json.dumps(line), flush=True)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
