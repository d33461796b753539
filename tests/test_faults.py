"""Commands that are killed, or whose disk becomes full, at some of their file operations.

`benchmarks/faults.py` tries many more moments, and signals, read-only disks, clocks and memory.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deploy.whole_folder import replacing_folder
from heat.commands import interrupts
from latency_tables.probe.lock import lock_file
from supernet.atomic import append_line, replacing
from supernet.data.shapes import make_shapes
from supernet.errors import UserError, out_of_memory
from supernet.version import __version__
from tests.fault_stages import STAGES, Place, Results
from tests.faulting import Child, forked
from tests.whole_files import half_written, remains

ORDER = ("estimate", "supernet", "thin", "train", "export", "detect")
MOMENTS = {"supernet": 1, "train": 1, "export": 1, "detect": 2}
"""How many are tried of each, spread over its file operations."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Place, Results, int]]:
    """Return what each stage finds, what it then gives, and its file operations."""
    root = tmp_path_factory.mktemp("faults")
    data = root / "data"
    make_shapes(data, train=4, val=2, seed=0)
    found: dict[str, tuple[Place, Results, int]] = {}
    place = Place(data, root / "whole")
    for name in ORDER:
        before = Place(data, root / f"before-{name}")
        place.run.mkdir(parents=True, exist_ok=True)
        shutil.copytree(place.folder, before.folder)
        done = forked(STAGES[name].command(place), place.folder)
        assert done.code == 0, done.errors
        found[name] = before, STAGES[name].results(place), done.operations
    return found


@pytest.mark.parametrize("fault", ["kill_at", "full_at"])
@pytest.mark.parametrize("name", MOMENTS)
def test_a_disturbed_command_goes_on(
    name: str,
    fault: str,
    undisturbed: dict[str, tuple[Place, Results, int]],
    tmp_path: Path,
) -> None:
    """Killed, or on a full disk, at one moment after the other: then it ends as if it had not."""
    stage, (before, wanted, operations) = STAGES[name], undisturbed[name]
    place = Place(before.data, tmp_path / "here")
    shutil.copytree(before.folder, place.folder)
    assert operations > 0
    shares = np.linspace(0, 1, MOMENTS[name] + 2)[1:-1] if fault == "kill_at" else [0.6]
    for turn, share in enumerate(shares):
        moment = round(share * operations)
        done = forked(stage.command(place, again=turn > 0), place.folder, **{fault: moment})
        assert half_written(place.folder) == [], moment
        if fault == "kill_at":  # what goes on after it has less to do, and may be done before
            assert done.code == -signal.SIGKILL or turn > 0, moment
        else:
            assert done.code == 2 and done.line.startswith("error: "), done.errors
            assert "No space left" in done.line and "Traceback" not in done.errors
    done = forked(stage.command(place, again=True), place.folder)
    assert done.code == 0, done.errors
    found = stage.results(place)
    assert [key for key in wanted if found[key] != wanted[key]] == []
    assert half_written(place.folder) == [] and remains(place.folder) == []


@pytest.mark.parametrize("name", [pytest.param("thin", marks=pytest.mark.slow), "export"])
def test_of_two_at_once_one_is_refused(
    name: str, undisturbed: dict[str, tuple[Place, Results, int]], tmp_path: Path
) -> None:
    """By process, command and time; when the first is killed its lock is free."""
    stage, (before, _, _) = STAGES[name], undisturbed[name]
    place = Place(before.data, tmp_path / "here")
    shutil.copytree(before.folder, place.folder)
    folder = place.run / ("thin" if name == "thin" else "bundle-onnx")
    first = Child(stage.command(place), place.folder, before=lambda: _slow(place.folder))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lock = lock_file(folder)
        if lock.exists() and lock.read_text():
            break
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGSTOP)
    done = forked(stage.command(place), place.folder)
    assert done.code == 2 and f"process {first.pid} (heat {name} --" in done.line, done.errors
    os.kill(first.pid, signal.SIGKILL)
    os.kill(first.pid, signal.SIGCONT)
    first.wait()
    assert forked(stage.command(place), place.folder).code == 0


def _slow(folder: Path) -> None:
    """Let every file operation of this process take long enough to be stopped in."""
    sys.addaudithook(
        lambda event, arguments: (
            time.sleep(0.05)
            if event == "open" and str(arguments[0]).startswith(str(folder))
            else None
        )
    )


STUCK = """
import sys, time
from deploy.whole_folder import replacing_folder
from heat.commands import interrupts
interrupts.PATIENCE_S = 0.3
from heat.cli import app, main
@app.command
def stuck(*, deaf: bool = False) -> None:
    print("working", flush=True)
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            if not deaf:
                raise
sys.exit(main(sys.argv[1:]))
"""
"""A command that never ends; a deaf one as a long step of torch, which no exception reaches."""


@pytest.mark.parametrize("deaf", [False, True])
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_signal_ends_a_command(number: signal.Signals, code: int, word: str, deaf: bool) -> None:
    command = [sys.executable, "-c", STUCK, "stuck", *(["--deaf"] if deaf else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "working\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert errors.startswith(f"error: {word}; what was finished is kept: the same command goes on")
    assert errors.count("\n") == 1


LEAVING = """
import atexit, sys, time
def leave() -> None:
    print("leaving", file=sys.stderr, flush=True)
    time.sleep(60)
from heat import __main__ as command
first = command.ignore_at_last
command.ignore_at_last = lambda: (first(), atexit.register(leave))
sys.argv = ["heat", "--version"]
sys.exit(command.main())
"""
"""A command that is done, in an interpreter that takes its time to end, as with torch."""


@pytest.mark.parametrize("number", interrupts.ENDING)
def test_a_signal_takes_nothing_from_a_finished_command(number: signal.Signals) -> None:
    command = [sys.executable, "-c", LEAVING]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and process.stderr.readline() == "leaving\n"
    process.send_signal(number)
    out, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "") and out.startswith(__version__)


def test_a_signal_within_a_flush_ends_the_command_too() -> None:
    """Python refuses to flush a stream that the interrupted code is flushing."""
    code = """
import io, os, signal, sys
from heat.commands import interrupts
class Raw(io.RawIOBase):
    def writable(self): return True
    def write(self, data):
        os.kill(os.getpid(), signal.SIGTERM)
        return len(data)
interrupts.finished(3)
sys.stderr = io.TextIOWrapper(io.BufferedWriter(Raw()))
sys.stderr.write("last words")
sys.stderr.flush()
sys.exit(9)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "")


def test_a_command_leaves_signals_as_they_were() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with interrupts.ending_soon():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_log_grows_by_whole_lines(tmp_path: Path) -> None:
    """What a kill cut off is dropped, however long it is."""
    path = tmp_path / "log.jsonl"
    append_line(path, '{"a": 1}')
    for torn in ('{"b', '{"c": "' + "x" * 200_000):
        with path.open("a") as stream:
            stream.write(torn)
        append_line(path, '{"d": 1}')
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"a": 1}, {"d": 1}, {"d": 1},
    ]  # fmt: skip
    path.write_text("torn from the first")
    append_line(path, "{}")
    assert path.read_text() == "{}\n"


def test_a_log_on_a_full_disk_keeps_its_lines(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "log.jsonl"
    append_line(path, "a" * 500)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (800, old[1]))
    try:
        with pytest.raises(UserError, match=f"cannot write {path}: File too large"):
            append_line(path, "b" * 500)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert path.read_text() == "a" * 500 + "\n"


def test_remains_of_killed_writers_are_removed(tmp_path: Path) -> None:
    """By the next one that holds the folder, and nothing else."""
    from heat.workspace import Workspace

    workspace = Workspace(tmp_path)
    path = workspace.train / "weights.safetensors"
    pid = os.fork()
    if not pid:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            os._exit(0)
    os.waitpid(pid, 0)
    (workspace.train / ".mine.tmp").write_bytes(b"")
    (left,) = workspace.train.glob(".weights.*.tmp")
    with workspace.claimed(workspace.train):
        assert not left.exists() and (workspace.train / ".mine.tmp").exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a primitive"),
        RuntimeError("can't start new thread"),
        ImportError("libx.so: failed to map segment from shared object"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_too_little_memory_is_one_line(error: Exception) -> None:
    line = out_of_memory(error)
    assert line is not None and line.startswith("out of memory (") and "\n" not in line
    assert out_of_memory(RuntimeError("memory format")) is None
    assert out_of_memory(RuntimeError("could not create a primitive descriptor")) is None


def test_a_bundle_on_a_full_disk_is_named(tmp_path: Path) -> None:
    """A write that fails names no file; one that is read elsewhere keeps its name."""
    folder = tmp_path / "bundle"
    full = f"cannot write {folder}: No space left on device"
    with pytest.raises(UserError, match=full), replacing_folder(folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError, match="absent"), replacing_folder(folder):
        (tmp_path / "absent").read_bytes()
    assert not list(tmp_path.iterdir())
