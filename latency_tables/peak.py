"""Peak resident memory of a model, in a process of its own that does nothing else.

    python -m latency_tables.peak MODEL RUNTIME PRECISION THREADS INPUTS

INPUTS is JSON, {name: [shape, dtype]}. Prints MiB. Needs numpy and the runtime only.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from supernet.errors import HeatError

from .batch import Model, Setting, load

RUNS = 3


def peak_mb(model: Model, setting: Setting, command: Sequence[str]) -> float:
    """Load and run a model in a fresh process; `command` starts this file's `peak_main`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.onnx)
        asked = [str(path), setting.runtime, setting.precision, str(setting.threads)]
        done = subprocess.run(
            [*command, *asked, json.dumps(model.inputs)],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise HeatError(f"the memory probe failed: {done.stderr.strip()[-300:]}")
    return float(done.stdout)


def peak_main(arguments: Sequence[str]) -> int:
    """Run a model some times and print this process's peak memory."""
    path, runtime, precision, threads, inputs = arguments
    shapes = {name: (tuple(shape), dtype) for name, (shape, dtype) in json.loads(inputs).items()}
    setting = Setting(runtime=runtime, precision=precision, threads=int(threads))
    job = load(Model(Path(path).read_bytes(), shapes), setting)
    for _ in range(RUNS):
        job.session.run(job.feeds)
    print(own_peak_mb())
    return 0


def own_peak_mb() -> float:
    """Return the peak resident memory of this process in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"), re.M)
        if found:
            return int(found[1]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.exit(peak_main(sys.argv[1:]))
