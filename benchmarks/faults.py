"""Kills, signals, full and read-only disks, other clocks, little memory, two commands at once.

    PYTHONPATH=. python benchmarks/faults.py --kills 60 --folder /tmp/faults --name faults

Tiny synthetic sets; `tests/faulting.py` has the commands and the faults. Kills are at random file
operations of a command, every other one at a random time of it; commands that are killed are forked
from a process that has imported everything, so that the moments are in their work. Profiles are
brief. A scenario passes where no file is half written after the fault, one line is printed where a
line can be, the same command goes on, and its results equal those of an undisturbed run. Finished
scenarios are kept in --folder and skipped by a second run. The last line is one JSON object; with
--name it goes to benchmarks/results/.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fault_scenarios import SCENARIOS
from result import RESULTS, tell

from supernet.atomic import write_text
from supernet.data.shapes import make_shapes
from tests.brief import measure_briefly
from tests.fault_stages import STAGES, Place, Results, Stage
from tests.faulting import Child, forked
from tests.whole_files import half_written, remains  # fmt: skip

CHAIN = 3
"""Kills of a command before it is let run to its end."""
SHARES = {
    "draw": 3, "profile": 6, "supernet": 9, "thin": 12, "train": 12, "export": 9, "build": 6,
    "detect": 9,
}  # fmt: skip
"""Kills of each stage, of 66."""


@dataclass(frozen=True, slots=True)
class Undisturbed:
    """A run of a stage without a fault."""

    results: Results
    operations: int
    seconds: float


class Base:
    """Undisturbed runs: what comes before each stage, and its results, operations and seconds.

    Each stage is run once, when it is first needed; a later benchmark in the folder finds it.
    """

    def __init__(self, folder: Path) -> None:
        """Draw the data, unless it is there."""
        self.folder, self.data = folder, folder / "data"
        if not self.data.exists():
            make_shapes(self.data, train=8, val=2, seed=0)
        self._known: dict[str, Undisturbed] = {}

    def undisturbed(self, name: str) -> "Undisturbed":
        """Return the undisturbed run of a stage."""
        if name not in self._known:
            stage, kept = STAGES[name], self.folder / f"{name}.json"
            place = Place(self.data, self.folder / f"{name}-undisturbed")
            if not kept.exists():
                place = self.place(name, "undisturbed")
                done = forked(stage.command(place), place.folder)
                if done.code not in (0, 3):
                    raise SystemExit(f"{name} fails undisturbed: {done.errors[-1000:]}")
                write_text(kept, json.dumps([done.operations, done.seconds]))
            operations, seconds = json.loads(kept.read_text())
            self._known[name] = Undisturbed(stage.results(place), operations, seconds)
            print(f"{name}: {operations} operations, {seconds:.1f} s", file=sys.stderr, flush=True)
        return self._known[name]

    def place(self, name: str, scenario: str) -> Place:
        """Return a new folder with what a stage needs."""
        folder = self.folder / f"{name}-{scenario}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        needs = STAGES[name].needs
        if needs:
            self.undisturbed(needs[-1])
            shutil.copytree(self.folder / f"{needs[-1]}-undisturbed" / "run", folder / "run")
        return Place(self.data, folder)

    def wrong(self, stage: Stage, place: Place) -> list[str]:
        """Let a disturbed stage go on to its end; return what is not as it should be."""
        done = forked(stage.command(place, again=True), place.folder)
        if done.code not in (0, 3):
            return [f"does not go on, exit code {done.code}: {done.line}"]
        found, wanted = stage.results(place), self.undisturbed(stage.name).results
        different = [f"other {key}" for key in wanted if found.get(key) != wanted[key]]
        left = [f"{name} is left" for name in remains(place.folder)]
        return different + left + half_written(place.folder)


def kill(base: Base, name: str, number: int, kills: int, seed: int) -> dict[str, Any]:
    """Kill a stage some times in a row, then let it run to its end."""
    stage, usual = STAGES[name], base.undisturbed(name)
    place = base.place(name, f"kills-{number}")
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
    survived, moments, wrong = 0, [], []
    for turn in range(kills):
        timed = bool((number + turn) % 2)
        at = int(rng.integers(1, usual.operations + 1))
        after = float(rng.uniform(0.02, 0.98)) * usual.seconds
        command = stage.command(place, again=turn > 0)
        fault = {} if timed else {"kill_at": at}
        child = Child(command, place.folder, **fault)
        done = child.wait(kill_after_s=after if timed else 600.0)
        moments.append(f"{after:.2f} s" if timed else f"operation {at}")
        if done.code == -9:
            survived += 1
        elif done.code not in (0, 3):
            wrong.append(f"after {moments}: {done.line}")
        wrong += [f"after {moments}: {text}" for text in half_written(place.folder)]
    wrong += base.wrong(stage, place)
    if not wrong:
        shutil.rmtree(place.folder)
    return {"kills": survived, "tried": kills, "moments": moments, "wrong": wrong}


def plan(kills: int) -> dict[str, tuple[str, int, int]]:
    """Return the kills as scenarios: stage, number of the chain, kills in it."""
    found = {}
    for name, share in SHARES.items():
        left = round(kills * share / sum(SHARES.values()))
        number = 0
        while left > 0:
            found[f"kill {name} {number}"] = (name, number, min(CHAIN, left))
            left, number = left - CHAIN, number + 1
    return found


def without_paths(text: str, folder: Path) -> str:
    """Return what a command said without the places of this machine."""
    return text.replace(str(folder), "FOLDER").replace(sys.prefix, "PREFIX")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--only", default="", help="how the scenarios' names begin, with commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where it runs and is resumed; a temporary one")
    parser.add_argument("--name")
    options = parser.parse_args()
    measure_briefly(setattr)
    os.environ["HEAT_PROCESSES"] = "1"
    torch.set_num_threads(1)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="heat-faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "finished.json"
    finished = json.loads(kept.read_text()) if kept.exists() else {}
    base = Base(folder)
    kills = plan(options.kills)
    for name in [*kills, *SCENARIOS]:
        if name in finished or not name.startswith(tuple(options.only.split(","))):
            continue
        start = time.monotonic()
        if name in kills:
            stage, number, count = kills[name]
            found = kill(base, stage, number, count, options.seed)
        else:
            found = SCENARIOS[name](base)
            if "said" in found:
                found["said"] = without_paths(found["said"], folder)
        finished[name] = {**found, "seconds": round(time.monotonic() - start, 1)}
        write_text(kept, json.dumps(finished, indent=1))
        print(json.dumps({name: finished[name]}), file=sys.stderr, flush=True)
    chosen = {name: found for name, found in finished.items() if name in {*kills, *SCENARIOS}}
    tried: Counter[str] = Counter()
    for name, found in chosen.items():
        if name in kills:
            tried[kills[name][0]] += found["kills"]
    result = {
        "kills": sum(tried.values()),
        "kills_by_command": dict(tried),
        "scenarios": len(chosen),
        "passed": sum(not found["wrong"] for found in chosen.values()),
        "skipped": [name for name, found in chosen.items() if found.get("skipped")],
        "wrong": {name: found["wrong"] for name, found in chosen.items() if found["wrong"]},
        "slowest_end_s": max((f.get("ended_s", 0.0) for f in chosen.values()), default=None),
        "others": {name: found for name, found in chosen.items() if name not in kills},
        "seconds": round(sum(found["seconds"] for found in chosen.values())),
    }
    tell(result, RESULTS / f"{options.name}.json" if options.name else None)
    sys.exit(bool(result["wrong"]))


if __name__ == "__main__":
    main()
