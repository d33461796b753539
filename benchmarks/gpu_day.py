"""Everything to do with a GPU in its few minutes: stages in order of worth, each on disk at once.

    python benchmarks/gpu_day.py [--data DIR] [--minutes 9] [--wheel-folder DIR] [--pack-into DIR]
    python benchmarks/gpu_day.py --wheels [DIR]     which wheels to carry there, and their size
    python benchmarks/gpu_day.py --rehearse --out DIR

The stages are the scripts in benchmarks/gpu/. Each runs in a process of its own with a share of the
time that is left, and writes OUT/STAGE.json as it goes on: one that fails, or is stopped at its
limit, leaves what it has, and the next one starts. A second call goes on with the stages that are
not done, and with what each of them lacks. Prints one JSON line for each stage, and the results of
all are in one file, OUT.tar.gz or DIR/OUT.tar.gz, after each. SIGTERM ends a stage in the same way.

The machine needs torch with CUDA and the packages that `--wheels` does not list; wheels in
--wheel-folder are unpacked into OUT/site first (`gpu/wheels.py`). With --rehearse all stages run on
the CPU with tiny sizes. A stage is done, or done partly where some of its parts failed or were left
out; exit code 1 if one is not done.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STAGES = ROOT / "benchmarks" / "gpu"
sys.path[:0] = [str(ROOT), str(STAGES)]  # HEAT need not be installed

import device
import wheels

from latency_tables.probe.machine import detect_gpus
from supernet.atomic import replacing, write_text
from supernet.errors import UserError

GRACE_S = 4.0
"""Seconds between asking a stage to end and ending it."""
BY_SIGNAL = "stopped by a signal"
"""State of a stage that was running when this script was asked to end."""


@dataclass(frozen=True)
class Planned:
    """A stage, and how much of the time it may have."""

    name: str
    share: float
    """Seconds of nine minutes; what earlier stages leave over is shared by those after them."""
    least_s: float
    """Seconds under which it is not started."""


PLAN = (
    Planned("here", 60, 60),  # torch is imported for the first time, and CUDA started
    Planned("gpu_tests", 60, 15),
    Planned("table", 150, 45),
    Planned("onnx_cuda", 30, 10),
    Planned("race", 70, 20),
    Planned("nccl", 60, 45),
    Planned("training", 190, 60),  # last: it uses what the others leave over
)


def run_stage(planned: Planned, options: argparse.Namespace, seconds: float) -> str:
    """Run a stage and return how it ended: done, partly, failed, or stopped."""
    command = [
        sys.executable, str(STAGES / f"{planned.name}.py"), "--out", str(options.out),
        "--until", f"{time.monotonic() + max(1.0, seconds - GRACE_S):.1f}",
    ]  # fmt: skip
    if options.rehearse:
        command.append("--rehearse")
    if options.data is not None:
        command += ["--data", str(options.data)]
    path = [str(options.out / "site"), str(ROOT), str(ROOT / "benchmarks")]
    path += filter(None, [os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
    log = options.out / f"{planned.name}.log"
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=environment, cwd=ROOT,
            start_new_session=True,
        )  # fmt: skip
        try:
            if process.wait(timeout=seconds):
                return "failed"
        except subprocess.TimeoutExpired:
            return "stopped at its limit"
        except KeyboardInterrupt:
            return BY_SIGNAL
        finally:
            stop(process)
    found = kept(options.out, planned.name)
    return "partly" if found.get("failures") or found.get("left_out") else "done"


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


def reason(out: Path, name: str, state: str) -> str:
    """Return why a stage is not done: the parts it lacks, or the last line of its log."""
    if state != "partly":
        return last_line(out, name)
    found = kept(out, name)
    parts = [f"{what}: {error}" for what, error in found.get("failures", {}).items()]
    if found.get("left_out"):
        parts.append(f"no time for {', '.join(found['left_out'])}")
    return "; ".join(parts)[:600]


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
    return (wheels.hint(missing[1]) if missing else None) or last


def pack(out: Path, folder: Path) -> None:
    """Put the results into one file in a folder; it is replaced at once."""
    try:
        with (
            replacing(folder / f"{out.name}.tar.gz") as temporary,
            tarfile.open(temporary, "w:gz") as archive,
        ):
            for file in sorted(out.rglob("*")):
                inside = file.relative_to(out)
                heavy = file.suffix in (".safetensors", ".pt", ".jpg", ".onnx")
                if file.is_file() and not heavy and inside.parts[0] != "site":
                    archive.add(file, Path(out.name) / inside)
    except (OSError, UserError) as error:
        print(f"the results are not in {folder}: {error}", file=sys.stderr)


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "gpu-day")
    parser.add_argument("--pack-into", type=Path, help="folder of the one file of all results")
    parser.add_argument("--data", type=Path, help="detection set to train on")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", default="", help="stages, separated by commas")
    parser.add_argument("--again", action="store_true", help="stages that are done, too; afresh")
    parser.add_argument("--wheel-folder", type=Path, help="wheels to unpack first")
    parser.add_argument("--wheels", nargs="?", const="", help="list them; check the folder DIR")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes")
    options = parser.parse_args()
    names = [planned.name for planned in PLAN]
    options.only = [name for name in options.only.split(",") if name] or names
    unknown = sorted(set(options.only) - set(names))
    if unknown:
        parser.error(f"--only {', '.join(unknown)}: of {', '.join(names)}")
    if options.data is not None:
        options.data = options.data.resolve()
        from supernet.data.coco import resolve_split

        try:
            resolve_split(options.data, "train")
        except UserError as error:
            parser.error(f"--data: {error}")
    options.out = options.out.resolve()
    options.pack_into = (options.pack_into or options.out.parent).resolve()
    return options


def main() -> int:
    """Run the stages."""
    options = parsed()
    if options.wheels is not None:
        return wheels.check(Path(options.wheels) if options.wheels else None)
    end = time.monotonic() + 60 * options.minutes
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.wheel_folder is not None:
        wheels.unpack(options.wheel_folder, options.out / "site")
    usable = options.rehearse or detect_gpus()
    here = device.facts(rehearsed=options.rehearse)
    todo: list[Planned] = []
    for planned in PLAN:
        before = kept(options.out, planned.name)
        same = before.get("state") == "done" and all(
            before.get(k, here[k]) == here[k] for k in here
        )
        if planned.name in options.only and same and not options.again:
            print(json.dumps({"stage": planned.name, "state": "done before"}), flush=True)
        elif planned.name in options.only:
            todo.append(planned)
    pack(options.out, options.pack_into)
    well = True
    while todo:
        planned, left = todo.pop(0), end - time.monotonic()
        shares = planned.share + sum(later.share for later in todo)
        seconds = max(planned.least_s, left * planned.share / shares)
        line: dict[str, Any] = {"stage": planned.name, "state": "not started"}
        if left < planned.least_s and not options.rehearse:
            line["why"] = f"{left:.0f} s are left, it needs {planned.least_s:.0f}"
        elif not usable:
            line["why"] = "no GPU (nvidia-smi lists none)"
        else:
            line |= carried_out(planned, options, seconds)
            pack(options.out, options.pack_into)
        well = well and line["state"] == "done"
        print(json.dumps(line), flush=True)
        if line["state"] == BY_SIGNAL:
            break
    return 0 if well else 1


def carried_out(planned: Planned, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Run a stage, and add how it ended to its result; returns that."""
    name, out, started = planned.name, options.out, time.monotonic()
    if options.again:
        shutil.rmtree(out / name, ignore_errors=True)
        (out / f"{name}.json").unlink(missing_ok=True)
    state = run_stage(planned, options, seconds)
    ended = {"state": state, "limit_s": round(seconds, 1)}
    if state != "done":
        ended["why"] = reason(out, name, state)
    found = kept(out, name) or {"stage": name}
    write_text(out / f"{name}.json", json.dumps({**found, **ended}, indent=1) + "\n")
    return {**ended, "seconds": round(time.monotonic() - started, 1)}


if __name__ == "__main__":
    sys.exit(main())
