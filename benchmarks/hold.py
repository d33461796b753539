"""A ladder holds a camera's rate while a load comes and goes; its most accurate network does not.

    python benchmarks/hold.py heat-run/bundle-ladder --hold-fps 30 --name hold

A pipe stands for a camera (`feeder.py`). After a third of the time processes that compute without
a pause start on every core, and end after two thirds. The ladder's own `detect.py` runs with
--hold-fps, then without, so that its most accurate network does all the work. The last line is one
JSON object: frames, dropped frames and the time of frames of each, and when networks took turns;
with --name it goes to benchmarks/results/.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from result import RESULTS, here, tell

from deploy.edge.detect import read_card
from deploy.edge.ladder import read_ladder

FEEDER = Path(__file__).with_name("feeder.py")


def burn() -> None:
    """Compute until killed."""
    while True:
        sum(range(10_000))


def run(options: argparse.Namespace, hold: bool) -> dict[str, Any]:
    """Detect on a camera for the given time; return what is reported of it."""
    with tempfile.TemporaryDirectory() as folder:
        pipe = Path(folder) / "camera.mjpeg"
        os.mkfifo(pipe)
        command = [sys.executable, str(options.ladder / "detect.py"), str(pipe)]
        command += ["--threads", str(options.threads)]
        command += ["--hold-fps", str(options.hold_fps)] if hold else []
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        asked = [str(pipe), str(options.seconds), str(options.hold_fps)]
        feeder = subprocess.Popen([sys.executable, str(FEEDER), *asked])
        load = [multiprocessing.Process(target=burn, daemon=True) for _ in range(options.load)]
        try:
            time.sleep(options.seconds / 3)
            for one in load:
                one.start()
            time.sleep(options.seconds / 3)
            for one in load:
                one.kill()
            out, _ = process.communicate()
        finally:
            feeder.kill()
            process.kill()
    result = json.loads(out.splitlines()[-1])
    return {
        "frames": result["frames"],
        "dropped": result["dropped"],
        "fps": result["fps"],
        "inference_ms": result["ms"]["inference"],
        "end_to_end_ms": result["ms"]["end_to_end"],
        "hold": result.get("hold"),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ladder", type=Path)
    parser.add_argument("--hold-fps", type=float, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--load", type=int, default=2 * (os.cpu_count() or 1), help="processes")
    parser.add_argument("--name")
    options = parser.parse_args()
    cards = [read_card(options.ladder / rung["bundle"]) for rung in read_ladder(options.ladder)]
    size = (cards[0]["input"]["height"], cards[0]["input"]["width"])
    result = {
        "rungs": [
            {key: card[key] for key in ("target_fps", "measured_fps", "p50_ms", "macs")}
            for card in cards
        ],
        "hold_fps": options.hold_fps,
        "seconds": options.seconds,
        "load": f"{options.load} processes from 1/3 to 2/3 of the time",
        "held": run(options, hold=True),
        "most accurate alone": run(options, hold=False),
        **here(cards[0]["runtime"], options.threads, size),
    }
    tell(result, RESULTS / f"{options.name}.json" if options.name else None)


if __name__ == "__main__":
    main()
