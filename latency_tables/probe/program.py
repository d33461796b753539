"""The probe: measures a pack of models on a device that has no HEAT and no torch.

    python heat-probe.pyz                 measures, writes heat-probe.results.jsonl beside itself
    python heat-probe.pyz --results FILE  writes the results to FILE

Needs numpy and the runtime. Each result is written to disk at once: a probe that was killed or
whose connection was lost goes on where it stopped when it is started again.
"""

import argparse
import json
import os
import sys
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from deploy.edge.session import runtime_version
from supernet.errors import DeviceError, HeatError, TableError

from .batch import Bench, precision_of
from .fresh import fresh_main, peak_mb, time_network
from .lock import only_one
from .machine import detect_cpu, detect_gpus, physical_cores
from .records import BatchRecord, Header, Manifest, NetworkRecord, Record
from .setting import REFERENCES, Model, Setting, key_of
from .timings import batch_to_json, network_to_json

RESULTS_FORMAT = 3
"""History of the results file: 1, the first; 2, four references, round by round; 3, the day of each
measurement."""

UNCHANGED = ("pack", "probe", "setting", "machine", "gpus", "runtime_version", "executed")
"""Keys of the header that must be the same when a probe goes on."""

LOCK_PATIENCE_S = 60.0
"""A probe whose connection was lost ends at its next line of output; the next one waits so long."""


UNREADABLE = (
    OSError, EOFError, KeyError, ValueError, RecursionError, RuntimeError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
"""What a zip archive that is broken raises while it is read."""


class Pack:
    """The zip archive that the probe runs from, with the manifest and the models."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
            self.manifest: Manifest = json.loads(self._zip.read("manifest.json"))
        except UNREADABLE as error:
            raise TableError(
                f"{path} is no pack ({error}): heat profile --pack makes one"
            ) from None

    def model(self, key: str) -> Model:
        """Return one model; raise `TableError` where the archive is broken."""
        inputs = self.manifest["inputs"][key]
        shapes = {name: (tuple(shape), dtype) for name, (shape, dtype) in inputs.items()}
        try:
            return Model(self._zip.read(f"models/{key}.onnx"), shapes)
        except UNREADABLE as error:
            raise TableError(f"{self.path} is broken ({error}): copy it again") from None

    @property
    def setting(self) -> Setting:
        """How the models are executed; 0 threads in the pack: as many as `resolve` takes here."""
        asked = Setting(**self.manifest["setting"])
        return replace(asked, threads=asked.threads or physical_cores())


def read_results(path: Path) -> list[Record]:
    """Return the records of a results file without a last line that was cut short by a kill."""
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = text.splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        if not all(isinstance(record, dict) for record in found):
            raise ValueError("a line is no record")
        return found
    except (OSError, ValueError, RecursionError):
        raise TableError(f"{path} is no results file: run the probe again") from None


def measure_pack(pack: Pack, path: Path, fresh_command: Sequence[str]) -> Path:
    """Measure what the results file at `path` does not hold yet; return the path."""
    setting = pack.setting
    with only_one(path, patience_s=LOCK_PATIENCE_S):
        done = read_results(path)
        references = {name: pack.model(key_of(name)) for name in REFERENCES}
        head = header(pack, precision_of(references["network"], setting))
        if done and differs(done[0], head):
            raise TableError(f"{path} holds results of another pack or machine state: remove it")
        if path.exists():
            cut_torn_line(path)
        if not done:
            append(path, head)
        finished = {record["batch"] for record in done if "batch" in record}
        bench = Bench(setting, references)
        batches = pack.manifest["batches"]
        start, new = time.monotonic(), 0
        for index, keys in enumerate(batches):
            if index in finished:
                continue
            result = bench.run({key: pack.model(key) for key in keys})
            timed: BatchRecord = {"batch": index, **batch_to_json(result)}
            append(path, timed)
            new += 1
            left = (len(batches) - index - 1) * (time.monotonic() - start) / new
            say(f"batch {index + 1} of {len(batches)}, ETA {left:.0f} s")
        measured = {record["network"] for record in done if "network" in record}
        for key in pack.manifest["networks"]:
            if key not in measured:
                model = pack.model(key)
                record: NetworkRecord = {
                    "network": key,
                    **network_to_json(time_network(model, references, setting, fresh_command)),
                }
                if key in pack.manifest["peaks"]:
                    record["peak_mb"] = peak_mb(model, setting, fresh_command)
                append(path, record)
            say(f"whole {key}")
    say(f"finished: {path}")
    return path


def differs(found: Mapping[str, object], head: Mapping[str, object]) -> bool:
    """Return whether a results file's first record is of another pack or machine state."""
    return any(_lasting(found.get(key)) != _lasting(head[key]) for key in UNCHANGED)


def _lasting(facts: object) -> object:
    """Return facts of a machine without the clock that its GPUs have at the moment."""
    if not isinstance(facts, list):
        return facts
    return [{**gpu, "clock_now": ""} if isinstance(gpu, dict) else gpu for gpu in facts]


def cut_torn_line(path: Path) -> None:
    """Remove a last line without its end, left by a kill: the next record would be joined to it."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def header(pack: Pack, executed: str) -> Header:
    """Return the first record of a results file."""
    setting = pack.setting
    return {
        "results_format": RESULTS_FORMAT,
        "pack": pack.manifest["pack"],
        "probe": pack.manifest["probe"],
        "plan": pack.manifest["plan"],
        "setting": setting.to_json(),
        "machine": detect_cpu().to_json(),
        "gpus": [gpu.to_json() for gpu in detect_gpus()],
        "runtime_version": runtime_version(setting.runtime),
        "executed": executed,
    }


def append(path: Path, record: Record) -> None:
    """Append a record to the results file and flush it to disk."""
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise DeviceError(
            f"cannot write {path} ({error.strerror}): make room, then start the probe again"
        ) from None


def say(text: str) -> None:
    """Print progress on standard error."""
    print(text, file=sys.stderr, flush=True)


def probe_main(arguments: Sequence[str]) -> int:
    """Run as `python heat-probe.pyz`."""
    if arguments and arguments[0] == "--fresh":
        return fresh_main(arguments[1:])
    own = Path(sys.argv[0])
    parser = argparse.ArgumentParser(prog=own.name, description=__doc__)
    parser.add_argument("--results", type=Path, default=own.with_suffix(".results.jsonl"))
    options = parser.parse_args(arguments)
    try:
        measure_pack(Pack(own), options.results, (sys.executable, str(own), "--fresh"))
    except HeatError as error:
        say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say("interrupted: start it again to go on")
        return 130
    return 0
