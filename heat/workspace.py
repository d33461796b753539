"""The workspace: one folder that remembers what each stage left, so that the next can go on.

heat-run/
  run.json           results, inputs and times of every stage
  tables/            latency tables
  supernet/          weights.safetensors, state.pt
  elastic/           the same of the elastic supernet; plan.json, the networks that it trains
  pretrain/          weights.safetensors, state.pt of a backbone
  thin/              architecture.json, thinning.csv, searching.csv, frontier.csv, readings.jsonl;
                     of an elastic supernet weights.safetensors
  train/             weights.safetensors, state.pt
  eval/              curves, confusion, reliability, worst images
  bundle-onnx/ ...   exported bundles
  serving/           the same laid out for inference servers: triton, ovms
  fleet/NAME/        a workspace for each member of a fleet, without tables and supernet
  report.html
"""

import datetime
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from latency_tables.probe.lock import only_one
from supernet.atomic import remove_remains, write_text
from supernet.errors import UserError, masked, wrong_format

from .records import OnDevice, Result, Stages

FORMAT_VERSION = 1
"""History of `run.json`: 1, the first."""

DEFAULT = Path("heat-run")
PATIENCE_S = 60.0
"""How long a stage waits until another command has written its record."""


_COMMAND: ContextVar[list[str] | None] = ContextVar("command", default=None)


@contextmanager
def commanded(text: str) -> Iterator[None]:
    """Record a call from Python as what was run, in place of the words of the command line."""
    token = _COMMAND.set([masked(text)])
    try:
        yield
    finally:
        _COMMAND.reset(token)


@dataclass(frozen=True, slots=True)
class Workspace:
    """Paths and the record of one run."""

    root: Path
    parent: Path | None = None
    """Workspace of the fleet that this one is a member of: it has the tables and the supernet.

    Where it is not given, `run.json` knows it.
    """

    def member(self, name: str) -> "Workspace":
        """Return the workspace of a member of the fleet."""
        folder = self.root / "fleet" / name
        if not folder.resolve().is_relative_to(self.root.resolve()):
            raise UserError(f"{folder} leads out of {self.root}: remove the link")
        return Workspace(folder, self.root)

    @property
    def home(self) -> Path:
        """The workspace that has the tables and the supernet."""
        if self.parent is not None:
            return self.parent
        known = self._read().get("parent")
        return Path(os.path.normpath(self.root / known)) if isinstance(known, str) else self.root

    @property
    def tables(self) -> Path:
        """Folder of latency tables."""
        return self.home / "tables"

    @property
    def supernet(self) -> Path:
        """Folder of the supernet's checkpoint."""
        return self.home / "supernet"

    @property
    def elastic(self) -> Path:
        """Folder of the elastic supernet's checkpoint."""
        return self.home / "elastic"

    @property
    def inherited(self) -> Path:
        """Weights of the thinned network as an elastic supernet has them."""
        return self.root / "thin" / "weights.safetensors"

    @property
    def pretrain(self) -> Path:
        """Folder of the pretrained backbone."""
        return self.root / "pretrain"

    @property
    def train(self) -> Path:
        """Folder of the detector's checkpoint."""
        return self.root / "train"

    @property
    def architecture(self) -> Path:
        """The thinned architecture."""
        return self.root / "thin" / "architecture.json"

    @property
    def ledger(self) -> Path:
        """The thinning ledger."""
        return self.root / "thin" / "thinning.csv"

    @property
    def searched(self) -> Path:
        """The ledger of a search that has not ended, or found no network."""
        return self.root / "thin" / "searching.csv"

    @property
    def frontier(self) -> Path:
        """Every network of the search."""
        return self.root / "thin" / "frontier.csv"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.root / "report.html"

    def bundle(self, format: str) -> Path:
        """Folder of the bundle of a format."""
        return self.root / f"bundle-{format}"

    def stages(self) -> Stages:
        """Return what every finished stage recorded, by stage name."""
        return cast(Stages, dict(cast(Result, self._read()["stages"])))

    def known(self) -> Stages:
        """Return the record of every stage; of a fleet's member with those of the fleet."""
        return cast(Stages, {**Workspace(self.home, self.home).stages(), **self.stages()})

    def stage(self, name: str) -> dict[str, Any]:
        """Return the record of a stage by its name; empty where there is none."""
        return dict(cast(Mapping[str, dict[str, Any]], self.stages()).get(name, {}))

    def finished(self, name: str) -> datetime.datetime:
        """Return when a stage was last recorded; long ago where it was not."""
        try:
            found = datetime.datetime.fromisoformat(self.stage(name)["finished"])
        except (KeyError, TypeError, ValueError):
            found = datetime.datetime.min
        return found if found.tzinfo is not None else found.replace(tzinfo=datetime.UTC)

    def about(self) -> Result:
        """Return what wrote the record last: version, Python, platform and command."""
        return {key: value for key, value in self._read().items() if key != "stages"}

    def _read(self) -> Result:
        path = self.root / "run.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["format"] != FORMAT_VERSION:
                raise UserError(
                    wrong_format(path, record["format"], [FORMAT_VERSION], "use another --out")
                )
            stages = dict(record["stages"])
            if not all(isinstance(stage, dict) for stage in stages.values()):
                raise ValueError("a stage is no record")
            return {**record, "stages": stages}
        except FileNotFoundError:
            return {"stages": {}}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path} cannot be read ({error}): use another --out") from None

    @contextmanager
    def claimed(self, path: Path, doing: str = "") -> Iterator[None]:
        """Hold a file or folder of the workspace for this process, and tidy it.

        Raises `UserError` naming the process, command and time of the one that holds it. Commands
        that only read need not hold anything: files are replaced whole.
        """
        with only_one(path, doing):
            remove_remains(path)
            yield

    def training(self, folder: Path) -> AbstractContextManager[None]:
        """Hold a folder that is trained into; of processes that train together the first does."""
        from supernet.train.distributed import first_process

        return self.claimed(folder, f"training in {folder}") if first_process() else nullcontext()

    def need(self, name: Literal["thin"], command: str) -> OnDevice:
        """Return what a stage recorded; raise `UserError` with its command where it has not run."""
        found = self.stages().get(name)
        if found is None:
            raise UserError(f"{self.root} has no finished {name}: run {command} first")
        return found

    def record(self, name: str, result: Result) -> Result:
        """Keep a stage's result in `run.json` and return it.

        Commands that run at once in one workspace write one after the other. Of URLs in the command
        neither users nor passwords are kept. A stage's `data` is kept as an absolute path: the next
        command may be run from another folder.
        """
        data = result.get("data")
        if isinstance(data, str):
            result = {**result, "data": str(Path(data).absolute())}
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._change(lambda kept: {**kept, name: {**result, "finished": now}})
        return result

    def forget(self, *names: str) -> None:
        """Take stages out of `run.json`, as if they had not run."""
        self._change(lambda kept: {key: kept[key] for key in kept if key not in names})

    def _change(self, stages: Callable[[Mapping[str, object]], Mapping[str, object]]) -> None:
        from supernet.version import __version__

        path = self.root / "run.json"
        with only_one(path, patience_s=PATIENCE_S):
            remove_remains(path)
            home = self.home
            record = {
                "format": FORMAT_VERSION,
                "heat": __version__,
                "python": platform.python_version(),
                "platform": f"{platform.system()} {platform.machine()}",
                "command": _COMMAND.get() or ["heat", *map(masked, sys.argv[1:])],
                # Seen from here, so that a fleet can move.
                **({"parent": os.path.relpath(home, self.root)} if home != self.root else {}),
                "stages": stages(cast(Mapping[str, object], self.stages())),
            }
            write_text(path, json.dumps(record, indent=1) + "\n")
