"""Faults made on purpose: commands that are killed, or refused a write, at any file operation.

The operations of Python in a folder are counted by an audit hook: opening a file to write,
renaming, removing, truncating. At one of them the process is killed, or from one on the disk is
full. Each `Stage` knows its command, the one that goes on, and its results as far as a repetition
must give the same. Used by `test_faults.py` and by `benchmarks/faults.py`.
"""

import csv
import errno
import json
import math
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import cv2
import numpy as np
import onnx
import torch
from safetensors.torch import load_file

from deploy.whole_folder import SUFFIX
from heat.cli import main
from latency_tables.table_file import read_table

SIZE = ("--input-size", "64x96")
SPACE = ("--space", "micro", *SIZE, "--threads", "1", "--runtime", "onnxruntime")
DEVICE = ("--device", "cpu-i7")
QUICK = ("--epochs", "2", "--batch-size", "4")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir", "os.link")

Results = Mapping[str, object]


def install(within: Path, kill_at: int = 0, full_at: int = 0) -> Callable[[], int]:
    """Count the operations in a folder from now on; return what returns their number.

    At operation `kill_at` the process is killed; from `full_at` on what needs room is refused.
    """
    count, start = 0, str(within.resolve())

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            path, mode, flags = arguments
            changes = bool(flags & WRITING) or (mode is not None and mode[0] not in "rU")
        elif event in CHANGES:
            path, changes = arguments[0], True
        else:
            return
        if not changes or isinstance(path, int) or not os.fsdecode(path).startswith(start):
            return
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if full_at and count >= full_at and event in ("open", "os.mkdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(path))

    sys.addaudithook(hook)
    return lambda: count


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    """Exit code; the negative number of the signal that killed it."""
    errors: str
    operations: int
    """Counted in the folder; 0 where it was killed."""
    seconds: float

    @property
    def line(self) -> str:
        """The last line of stderr."""
        lines = self.errors.strip().splitlines()
        return lines[-1] if lines else ""


class Child:
    """A command in a child of this process, which has imported everything already.

    Moments at which it is killed are then in its work.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        within: Path,
        *,
        kill_at: int = 0,
        full_at: int = 0,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Start it; `before` is called in the child first."""
        self._folder = Path(tempfile.mkdtemp())
        self._start = time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            self._be([str(word) for word in arguments], within, kill_at, full_at, before)

    def wait(self, kill_after_s: float = math.inf) -> Outcome:
        """Return how it ended, killed after so many seconds."""
        killed = False
        while not (done := os.waitpid(self.pid, os.WNOHANG))[0]:
            if not killed and time.monotonic() - self._start > kill_after_s:
                killed = True
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.01)
        errors, count = self._folder / "stderr", self._folder / "count"
        outcome = Outcome(
            os.waitstatus_to_exitcode(done[1]),
            errors.read_text(errors="replace") if errors.exists() else "",
            int(count.read_text()) if count.exists() else 0,
            time.monotonic() - self._start,
        )
        shutil.rmtree(self._folder)
        return outcome

    def _be(
        self,
        arguments: list[str],
        within: Path,
        kill_at: int,
        full_at: int,
        before: Callable[[], None],
    ) -> NoReturn:
        code = 1
        errors = self._folder / "stderr"
        try:
            with errors.open("w", buffering=1) as stream:
                sys.stdout = sys.stderr = stream
                sys.argv = ["heat", *arguments]
                before()
                count = install(within, kill_at, full_at)
                code = main(arguments)
                (self._folder / "count").write_text(str(count()))
        except BaseException:
            with errors.open("a") as stream:
                traceback.print_exc(file=stream)
        finally:
            os._exit(code)


def forked(arguments: Sequence[object], within: Path, **fault: Any) -> Outcome:
    """Run a command to its end; see `Child`."""
    return Child(arguments, within, **fault).wait()


@dataclass(frozen=True)
class Stage:
    """A command, and what must be the same when it was disturbed."""

    name: str
    arguments: Callable[["Place"], Sequence[str]]
    results: Callable[["Place"], Results]
    goes_on: tuple[str, ...] = ()
    """Options of the command that goes on with it."""
    needs: tuple[str, ...] = ()
    """Stages that come before it."""

    def command(self, place: "Place", again: bool = False) -> list[str]:
        """Return the arguments of heat."""
        more = self.goes_on if again else ()
        return [*map(str, self.arguments(place)), *more]


@dataclass(frozen=True)
class Place:
    """A folder with the data, and the folder in which a scenario happens."""

    data: Path
    folder: Path

    @property
    def run(self) -> Path:
        """The workspace."""
        return self.folder / "run"

    @property
    def out(self) -> tuple[str, str]:
        """The option that names it."""
        return "--out", str(self.run)


def tensors(path: Path) -> dict[str, bytes]:
    """Return the bytes of the tensors of a checkpoint; its header has times in it."""
    return {key: value.numpy().tobytes() for key, value in load_file(path).items()}


def columns(path: Path, without: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a CSV file without the columns that are times."""
    with path.open(newline="") as stream:
        return [
            {k: v for k, v in row.items() if k not in without} for row in csv.DictReader(stream)
        ]


def _trained(folder: str) -> Callable[[Place], Results]:
    def results(place: Place) -> Results:
        own = place.run / folder
        pace = ("images_per_second", "memory_mb")
        return {
            "weights": tensors(own / "weights.safetensors"),
            "metrics": columns(own / "metrics.csv", pace),
            "recorded": folder in _stages(place),
        }

    return results


def _thinned(place: Place) -> Results:
    return {
        "ledger": columns(place.run / "thin" / "thinning.csv", ("seconds",)),
        "architecture": (place.run / "thin" / "architecture.json").read_text(),
        "fps": _stages(place)["thin"]["predicted_fps"],
    }


def _exported(place: Place) -> Results:
    bundle = place.run / "bundle-onnx"
    card = json.loads((bundle / "card.json").read_text())
    return {
        "files": sorted(path.name for path in bundle.iterdir()),
        "model": (bundle / "model.onnx").read_bytes(),
        "card": {key: card[key] for key in ("names", "input", "decode", "trained", "architecture")},
        "recorded": "export-onnx" in _stages(place),
    }


def _detected(place: Place) -> Results:
    found = place.folder / "found"
    records = json.loads((found / "detections.json").read_text())
    return {
        "records": [{**record, "latency_ms": 0, "saved": ""} for record in records],
        "images": {p.name: p.read_bytes() for p in sorted(found.iterdir()) if p.suffix == ".jpg"},
    }


def _profiled(place: Place) -> Results:
    """Return what does not depend on timings."""
    (path,) = (p for p in (place.run / "tables").glob("*.csv") if "estimate" not in p.name)
    return {
        "entries": sorted(map(str, read_table(path).rows)),
        "recorded": "profile" in _stages(place),
    }


def _built(place: Place) -> Results:
    """Return what does not depend on timings: on a busy machine the target may be missed."""
    return {"files": _exported(place)["files"], "recorded": "export-onnx" in _stages(place)}


def _drawn(place: Place) -> Results:
    folder = place.folder / "shapes"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _stages(place: Place) -> dict[str, Any]:
    return dict(json.loads((place.run / "run.json").read_text())["stages"])


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "draw",
            lambda place: ["data", "shapes", place.folder / "shapes", "--train", 6, "--val", 2],
            _drawn,
        ),
        Stage("profile", lambda place: ["profile", *SPACE, *place.out], _profiled),
        Stage(
            "estimate",
            lambda place: [
                "profile", *DEVICE, "--estimate", "--data", place.data, *SPACE, *place.out,
            ],
            lambda place: {"recorded": "profile" in _stages(place)},
        ),
        Stage(
            "supernet",
            lambda place: [
                "supernet", "--data", place.data, "--space", "micro", *SIZE, *QUICK, *place.out,
            ],
            _trained("supernet"),
            ("--resume",),
            ("estimate",),
        ),
        Stage(
            "thin",
            lambda place: [
                "thin", "--trust-table", "--target-fps", 550, "--ap-drop", "loss", *place.out,
            ],
            _thinned,
            (),
            ("estimate", "supernet"),
        ),
        Stage(
            "train",
            lambda place: [
                "train", "--data", place.data, *QUICK, "--eval-every", 1, *place.out,
            ],
            _trained("train"),
            ("--resume",),
            ("estimate", "supernet", "thin"),
        ),
        Stage(
            "export",
            lambda place: ["export", *place.out],
            _exported,
            (),
            ("estimate", "supernet", "thin", "train"),
        ),
        Stage(
            "detect",
            lambda place: [
                "detect", place.run / "bundle-onnx", place.data / "train", "--save",
                place.folder / "found", "--score", 0.01,
            ],
            _detected,
            (),
            ("estimate", "supernet", "thin", "train", "export"),
        ),
        Stage(
            "build",
            lambda place: [
                "build", "--data", place.data, "--target-fps", 20, "--threads", 1, "--minutes", 0.2,
                "--space", "micro", *SIZE, *place.out,
            ],
            _built,
        ),
    )
}  # fmt: skip
"""Of every kind that writes; in an order in which they can be run."""


def half_written(folder: Path) -> list[str]:
    """Return the files that are not whole, each with what is wrong; hidden ones are not read."""
    wrong = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not path.is_file():
            continue
        try:
            read = WHOLE.get(path.suffix)
            if read is not None:
                read(path)
        except Exception as error:
            wrong.append(f"{path.relative_to(folder)}: {type(error).__name__}: {error}")
    return wrong


def remains(folder: Path) -> list[str]:
    """Return what writing left under temporary names."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob(".*"))
        if path.suffix not in (".lock", ".part") and not path.name.endswith(f".old.{SUFFIX}")
    ]


def _csv(path: Path) -> None:
    with path.open(newline="") as stream:
        lines = [line for line in stream if not line.startswith("#")]
    rows = list(csv.reader(lines))
    assert rows and {len(row) for row in rows} == {len(rows[0])}, "rows of different lengths"
    assert lines[-1].endswith("\n"), "the last line is cut"


def _image(path: Path) -> None:
    assert cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR) is not None, "no image"


def _ends_with(end: str) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        assert path.read_text().rstrip().endswith(end), f"does not end with {end}"

    return check


WHOLE: Mapping[str, Callable[[Path], object]] = {
    ".json": lambda path: json.loads(path.read_text()),
    ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
    ".csv": _csv,
    ".safetensors": load_file,
    ".pt": lambda path: torch.load(path, weights_only=True),
    ".onnx": lambda path: onnx.checker.check_model(onnx.load(path)),
    ".jpg": _image,
    ".png": _image,
    ".svg": _ends_with("</svg>"),
    ".html": _ends_with("</html>"),
}
"""How a file of each kind is read to its end."""
