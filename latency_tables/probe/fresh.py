"""Measures a whole network in a fresh process that does nothing else, as a deployed one.

    python -m latency_tables.probe.fresh peak FOLDER    prints peak resident memory in MiB
    python -m latency_tables.probe.fresh time FOLDER    prints a `NetworkResult`, with references

FOLDER holds setting.json, and for each model a JSON file with its path and inputs. Needs numpy and
the runtime only. In a process that has run hundreds of models before, a network is some percent
slower than in its own.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from deploy.edge.bench import own_peak_mb
from supernet.errors import HeatError

from .batch import Bench, load
from .setting import REFERENCES, Model, Setting, key_of
from .timings import NetworkResult, network_from_json, network_to_json

RUNS = 3


def peak_mb(model: Model, setting: Setting, command: Sequence[str]) -> float:
    """Return the peak memory of a fresh process that loads and runs a model, in MiB.

    `command` starts this file's `fresh_main`.
    """
    return float(in_own_process("peak", {"network": model}, setting, command))


def time_network(
    model: Model, references: Mapping[str, Model], setting: Setting, command: Sequence[str]
) -> NetworkResult:
    """Time a network interleaved with the references in a fresh process."""
    beside = {key_of(name): reference for name, reference in references.items()}
    found = in_own_process("time", {"network": model, **beside}, setting, command)
    return network_from_json(json.loads(found))


def in_own_process(
    verb: str, models: Mapping[str, Model], setting: Setting, command: Sequence[str]
) -> str:
    """Run this file on models in a fresh process and return its output."""
    with tempfile.TemporaryDirectory() as folder:
        for name, model in models.items():
            path = model.file
            if path is None:
                path = Path(folder) / f"{name}.onnx"
                path.write_bytes(model.onnx)
            facts = {"file": str(path.resolve()), "inputs": model.inputs}
            (Path(folder) / f"{name}.json").write_text(json.dumps(facts), encoding="utf-8")
        asked = json.dumps(asdict(setting))
        (Path(folder) / "setting.json").write_text(asked, encoding="utf-8")
        done = subprocess.run([*command, verb, folder], capture_output=True, text=True, check=False)
    if done.returncode:
        raise HeatError(f"the {verb} probe failed: {done.stderr.strip()[-300:]}")
    return done.stdout


def read_model(folder: Path, name: str) -> Model:
    """Return the model that a JSON file in the folder describes."""
    facts = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    shapes = {key: (tuple(shape), dtype) for key, (shape, dtype) in facts["inputs"].items()}
    return Model(b"", shapes, file=Path(facts["file"]))


def fresh_main(arguments: Sequence[str]) -> int:
    """Run the verb on the folder and print its result."""
    verb, place = arguments
    folder = Path(place)
    setting = Setting(**json.loads((folder / "setting.json").read_text(encoding="utf-8")))
    network = read_model(folder, "network")
    if verb == "time":
        references = {name: read_model(folder, key_of(name)) for name in REFERENCES}
        print(json.dumps(network_to_json(Bench(setting, references).network(network))))
        return 0
    job = load(network, setting)
    with job.session as session:
        for _ in range(RUNS):
            session.run(job.feeds)
    print(own_peak_mb())
    return 0


if __name__ == "__main__":
    sys.exit(fresh_main(sys.argv[1:]))
