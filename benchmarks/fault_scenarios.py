"""Scenarios of `faults.py` other than kills: each returns what went wrong, and what it saw."""

import contextlib
import datetime
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from latency_tables.probe.lock import lock_file
from latency_tables.table_file import read_table
from tests.fault_stages import STAGES, Place
from tests.faulting import Child, Outcome, forked
from tests.whole_files import half_written

Found = dict[str, Any]
HEAT = (sys.executable, "-m", "heat")
MOST_S = 5.0
"""How long a command may take to end on a signal."""
YEAR_S = 365 * 86_400


def one_line(done: Outcome, code: int, *words: str) -> list[str]:
    """Return what is wrong with how a command refused."""
    wrong = [] if done.code == code else [f"exit code {done.code}, not {code}: {done.line}"]
    if not done.line.startswith("error: ") or "Traceback" in done.errors:
        wrong.append(f"no line of error: {done.errors[-300:]}")
    return wrong + [f"{word!r} is not in: {done.line}" for word in words if word not in done.line]


def signalled(base: Any, name: str, number: signal.Signals, after_s: float) -> Found:
    """Send a signal to a command, so many seconds after its work began, and let it go on."""
    stage, place = STAGES[name], base.place(name, f"{number.name}")
    errors = place.folder / "stderr.txt"
    with errors.open("w") as stream:
        process = subprocess.Popen(
            [*HEAT, *stage.command(place)],
            stdout=subprocess.DEVNULL,
            stderr=stream,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        before = {path for path in place.folder.rglob("*")}
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if {path for path in place.folder.rglob("*")} - before:
                break
            time.sleep(0.05)
        time.sleep(after_s)
        start = time.monotonic()
        process.send_signal(number)
        try:
            code = process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        ended_s = time.monotonic() - start
    done = Outcome(code, errors.read_text(), 0, ended_s)
    errors.unlink()
    if code == 0:
        return {"wrong": [], "skipped": "it was finished before", "ended_s": 0.0}
    wrong = one_line(done, 128 + number, "what was finished is kept")
    if ended_s > MOST_S:
        wrong.append(f"ended after {ended_s:.1f} s")
    wrong += half_written(place.folder) + base.wrong(stage, place)
    return {"wrong": wrong, "ended_s": round(ended_s, 2)}


ROOM_KB = 400_000
"""Enough for all that a command writes, and for each file twice."""


@contextlib.contextmanager
def disk(place: Place, room_kb: int) -> Iterator[Callable[[str], None]]:
    """Put the folder onto a file system with so much room; yield what changes its options.

    Raises `OSError` where that is not allowed.
    """
    beside = place.folder.with_name(f"{place.folder.name}-disk")
    beside.mkdir(exist_ok=True)
    used = sum(p.stat().st_blocks // 2 + 4 for p in place.folder.rglob("*"))
    size = f"size={used + room_kb}k"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(beside)], capture_output=True, text=True
    )
    if mounted.returncode:
        raise OSError(mounted.stderr.strip())
    try:
        shutil.copytree(place.folder, beside, dirs_exist_ok=True)
        yield lambda options: _remount(beside, options)
    finally:
        subprocess.run(["umount", "--lazy", str(beside)], check=True)
        beside.rmdir()


def _remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def full_disk(base: Any, name: str, room_kb: int) -> Found:
    """Run a command on a disk that becomes full, then with room."""
    place = base.place(name, f"full-{room_kb}")
    try:
        with disk(place, room_kb) as remount:
            there = Place(place.data, place.folder.with_name(f"{place.folder.name}-disk"))
            done = forked(STAGES[name].command(there), there.folder)
            wrong = [] if done.code == 0 else one_line(done, 2)
            wrong += half_written(there.folder)
            remount(f"size={ROOM_KB}k")
            wrong += base.wrong(STAGES[name], there)
    except OSError as error:
        return {"wrong": [], "skipped": f"no small disk: {error}"}
    return {"wrong": wrong, "said": done.line}


def read_only(base: Any, name: str) -> Found:
    """Run a command in a read-only workspace, which stays as it is, then in a writable one."""
    place = base.place(name, "read-only")
    try:
        with disk(place, ROOM_KB) as remount:
            there = Place(place.data, place.folder.with_name(f"{place.folder.name}-disk"))
            remount("ro")
            done = forked(STAGES[name].command(there), there.folder)
            wrong = one_line(done, 2)
            if name == "detect":  # reading is enough
                elsewhere = ["--save", place.folder / "elsewhere"]
                command = ["detect", there.run / "bundle-onnx", place.data / "train", *elsewhere]
                again = forked(command, there.folder)
                wrong += [] if again.code == 0 else [f"does not detect: {again.line}"]
            remount("rw")
            wrong += base.wrong(STAGES[name], there)
    except OSError as error:
        return {"wrong": [], "skipped": f"no read-only disk: {error}"}
    return {"wrong": wrong, "said": done.line}


def _set_back() -> None:
    """Let the clock of this process be a year slow."""
    now, real = time.time, datetime.datetime

    class Slow(real):  # type: ignore[misc, valid-type]
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return real.fromtimestamp(real.now().timestamp() - YEAR_S, tz)

    time.time = lambda: now() - YEAR_S
    for module in list(sys.modules.values()):
        if getattr(module, "datetime", None) is real:
            module.datetime = Slow
    datetime.datetime = Slow


def clock_set_back(base: Any, name: str) -> Found:
    """Kill a command half way, and go on a year earlier."""
    stage, place = STAGES[name], base.place(name, "clock")
    Child(stage.command(place), place.folder, kill_at=base.undisturbed(name).operations // 2).wait()
    done = forked(stage.command(place, again=True), place.folder, before=_set_back)
    wrong = [] if done.code in (0, 3) else [f"exit code {done.code}: {done.line}"]
    return {"wrong": wrong + base.wrong(stage, place)}


def _limit(more_mb: int) -> None:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmSize:"):
            most = (int(line.split()[1]) + more_mb * 1024) * 1024
            resource.setrlimit(resource.RLIMIT_AS, (most, most))


def little_memory(base: Any, name: str, more_mb: int) -> Found:
    """Run a command that may take so many megabytes more, then without a limit."""
    stage, place = STAGES[name], base.place(name, f"memory-{more_mb}")
    done = forked(stage.command(place), place.folder, before=partial(_limit, more_mb))
    wrong = [] if done.code in (0, 3) else one_line(done, done.code)
    wrong += [f"killed by signal {-done.code}"] if done.code < 0 else []
    wrong += half_written(place.folder) + base.wrong(stage, place)
    return {"wrong": wrong, "said": done.line if done.code else ""}


def loader_killed(base: Any) -> Found:
    """Kill a process that loads images: one line, and the training goes on."""
    stage, place = STAGES["train"], base.place("train", "loader")
    child = Child([*stage.command(place), "--workers", 1], place.folder)
    killed = 0
    deadline = time.monotonic() + 120
    while not killed and time.monotonic() < deadline:
        below = _below(child.pid)
        if len(below) > 2:  # resource tracker, fork server, and the loader below it
            killed = below[-1]
            os.kill(killed, signal.SIGKILL)
        time.sleep(0.02)
    done = child.wait()
    wrong = one_line(done, 1, "a process that loads images died") if done.code else []
    return {"wrong": wrong + base.wrong(stage, place), "said": done.line if done.code else ""}


def _below(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *_below(int(child))]
    return found


def two_commands(base: Any) -> Found:
    """Train beside a training: refused by name; what reads goes on; a dead one's lock is free."""
    place = base.place("detect", "two")
    long = ["--epochs", "500", "--batch-size", "4", "--eval-every", "0", "--restart"]
    first = Child(["train", "--data", place.data, *long, *place.out], place.folder)
    _wait_for(lock_file(place.run / "train"))
    done = forked(STAGES["train"].command(place), place.folder)
    wrong = one_line(done, 2, f"process {first.pid} (", "heat train", "is training in")
    bundle = place.run / "bundle-onnx"
    reading: Mapping[str, list[Any]] = {
        "report": ["report", *place.out],
        "eval": ["eval", "--bundle", bundle, *place.out],
        "detect": STAGES["detect"].command(place),
        "bench": ["bench", bundle, "--rounds", 1],
    }
    for name, words in reading.items():
        beside = forked(words, place.folder)
        wrong += [] if beside.code == 0 else [f"{name} beside it: {beside.line}"]
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    after = forked([*STAGES["train"].command(place), "--restart"], place.folder)
    wrong += [] if after.code == 0 else [f"after it was killed: {after.line}"]
    return {"wrong": wrong, "said": done.line}


def two_at_once(base: Any, name: str, lock: str) -> Found:
    """Start a command twice: the second is refused by name, and goes on after the first."""
    stage, place = STAGES[name], base.place(name, "two")
    first = Child(stage.command(place), place.folder)
    _wait_for(*(place.run / pattern for pattern in [lock]))
    done = forked(stage.command(place), place.folder)
    wrong = one_line(done, 2, f"process {first.pid} (heat {name if name != 'estimate' else ''}")
    ended = first.wait()
    wrong += [] if ended.code in (0, 3) else [f"the first: {ended.line}"]
    if name == "profile":
        (path,) = (place.run / "tables").glob("*.csv")
        samples = len(read_table(path).samples)
        wrong += base.wrong(stage, place)
        wrong += [] if len(read_table(path).samples) >= samples else ["samples are lost"]
        return {"wrong": wrong, "said": done.line}
    return {"wrong": wrong + base.wrong(stage, place), "said": done.line}


def _wait_for(pattern: Path) -> None:
    """Wait until a lock is signed."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for path in pattern.parent.glob(pattern.name):
            with contextlib.suppress(OSError, ValueError):
                json.loads(path.read_text())
                return
        time.sleep(0.01)
    raise SystemExit(f"no {pattern}")


SCENARIOS: Mapping[str, Callable[[Any], Found]] = {
    **{
        f"{number.name} {name} {after_s}": partial(
            signalled, name=name, number=number, after_s=after_s
        )
        for number in (signal.SIGTERM, signal.SIGINT)
        for name, after_s in (
            ("profile", 3.0), ("supernet", 2.0), ("thin", 1.0), ("train", 2.0), ("export", 1.0),
            ("detect", 0.0), ("build", 10.0),
        )
    },
    **{
        f"full disk {name} {room_kb} KB": partial(full_disk, name=name, room_kb=room_kb)
        for name in ("draw", "estimate", "supernet", "thin", "train", "export", "detect")
        for room_kb in (8, 200)
    },
    **{
        f"read-only {name}": partial(read_only, name=name)
        for name in ("draw", "profile", "supernet", "thin", "train", "export", "detect")
    },
    **{
        f"clock set back {name}": partial(clock_set_back, name=name)
        for name in ("supernet", "thin", "train", "export")
    },
    **{
        f"memory {name} {more_mb} MB": partial(little_memory, name=name, more_mb=more_mb)
        for name in ("thin", "train", "export", "detect")
        for more_mb in (2, 20, 100)
    },
    "loader killed": loader_killed,
    "two commands": two_commands,
    "two at once profile": partial(two_at_once, name="profile", lock="tables/.*.csv.lock"),
    "two at once thin": partial(two_at_once, name="thin", lock=".thin.lock"),
    "two at once export": partial(two_at_once, name="export", lock=".bundle-onnx.lock"),
    "two at once build": partial(two_at_once, name="build", lock=".build.lock"),
}  # fmt: skip
