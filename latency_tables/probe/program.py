"""The probe: measures a pack of models on a device that has no HEAT and no torch.

    python heat-probe.pyz                 measures, writes heat-probe.results.jsonl beside itself
    python heat-probe.pyz --results FILE  writes there

Needs numpy and the runtime. What is measured is on disk at once: a probe that was killed or cut
off goes on where it stopped when it is started again.
"""

import argparse
import json
import os
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from deploy.edge.session import runtime_version
from supernet.errors import DeviceError, HeatError, TableError

from .batch import Bench, precision_of
from .fresh import fresh_main, peak_mb, time_network
from .lock import only_one
from .machine import available_cores, detect_cpu, detect_gpus
from .setting import REFERENCES, Model, Setting, key_of
from .timings import batch_to_json, network_to_json

RESULTS_FORMAT = 2
"""History of the results file: 1, the first; 2, four references, round by round."""

MUST_STAND = ("pack", "probe", "setting", "machine", "runtime_version", "executed")
"""What must not have changed when a probe goes on."""

LOCK_PATIENCE_S = 60.0
"""A probe whose connection was lost notices at its next word; its successor waits so long."""


class Pack:
    """The zip archive that the probe runs from: manifest and models."""

    def __init__(self, path: Path) -> None:
        """Open the archive and read its manifest."""
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
            self.manifest: dict[str, Any] = json.loads(self._zip.read("manifest.json"))
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise TableError(
                f"{path} is no pack ({error}): heat profile --pack makes one"
            ) from None

    def model(self, key: str) -> Model:
        """Return one model."""
        inputs = self.manifest["inputs"][key]
        shapes = {name: (tuple(shape), dtype) for name, (shape, dtype) in inputs.items()}
        return Model(self._zip.read(f"models/{key}.onnx"), shapes)

    @property
    def setting(self) -> Setting:
        """How the models are executed; 0 threads in the pack are all cores of this machine."""
        asked = Setting(**self.manifest["setting"])
        return replace(asked, threads=asked.threads or available_cores())


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the records of a results file; a line cut short by a kill is left out."""
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = text.splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except (OSError, ValueError):
        raise TableError(f"{path} is no results file: run the probe again") from None


def measure_pack(pack: Pack, path: Path, fresh_command: Sequence[str]) -> Path:
    """Measure what the results at `path` lack; return the path."""
    setting = pack.setting
    with only_one(path, patience_s=LOCK_PATIENCE_S):
        done = read_results(path)
        references = {name: pack.model(key_of(name)) for name in REFERENCES}
        head = header(pack, precision_of(references["network"], setting))
        if not done:
            append(path, head)
        elif any(done[0].get(key) != head[key] for key in MUST_STAND):
            raise TableError(f"{path} holds results of another pack or machine state: remove it")
        cut_torn_line(path)
        finished = {record["batch"] for record in done if "batch" in record}
        bench = Bench(setting, references)
        batches: list[list[str]] = pack.manifest["batches"]
        start, new = time.monotonic(), 0
        for index, keys in enumerate(batches):
            if index in finished:
                continue
            result = bench.run({key: pack.model(key) for key in keys})
            append(path, {"batch": index, **batch_to_json(result)})
            new += 1
            left = (len(batches) - index - 1) * (time.monotonic() - start) / new
            say(f"batch {index + 1} of {len(batches)}, ETA {left:.0f} s")
        measured = {record["network"] for record in done if "network" in record}
        for key in pack.manifest["networks"]:
            if key not in measured:
                model = pack.model(key)
                record: dict[str, Any] = {
                    "network": key,
                    **network_to_json(time_network(model, references, setting, fresh_command)),
                }
                if key in pack.manifest["peaks"]:
                    record["peak_mb"] = peak_mb(model, setting, fresh_command)
                append(path, record)
            say(f"whole {key}")
    say(f"finished: {path}")
    return path


def cut_torn_line(path: Path) -> None:
    """Cut off a line that a kill left unfinished: it would swallow the next one."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def header(pack: Pack, executed: str) -> dict[str, Any]:
    """Return the first record: what was measured, where, and by which probe."""
    setting = pack.setting
    return {
        "results_format": RESULTS_FORMAT,
        "pack": pack.manifest["pack"],
        "probe": pack.manifest["probe"],
        "plan": pack.manifest["plan"],
        "setting": asdict(setting),
        "machine": json.loads(json.dumps(asdict(detect_cpu()))),
        "gpus": [asdict(gpu) for gpu in detect_gpus()],
        "runtime_version": runtime_version(setting.runtime),
        "executed": executed,
    }


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a record and see that it is on disk."""
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
    """Report progress."""
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
