"""Builds HEAT's packages and uses them as a stranger would: `make release`.

    PYTHONPATH=. python benchmarks/release.py [--out dist] [--python PYTHON] [--name release]

The sdist is built, the wheel from it. The wheel is installed into an empty environment in an empty
folder, and there run `heat --version`, `heat doctor` and the three commands at a small size. The
bundle that comes out is then run by its own `detect.py` in a second environment that has numpy,
OpenCV and ONNX Runtime only. Versions are those of `constraints.txt`. With --name the result goes
to benchmarks/results/.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from result import RESULTS, tell

ROOT = Path(__file__).parent.parent
EDGE = ("numpy", "opencv-python-headless", "onnxruntime")
SMALL = ("--space", "micro", "--input-size", "96x128", "--threads", "1")


def bare() -> dict[str, str]:
    """Return the environment without what this checkout would add to Python."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


class Place:
    """An environment of its own, and an empty folder that commands run in."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder, self.bin = folder / "here", folder / "venv" / "bin"
        self.folder.mkdir(parents=True)
        subprocess.run([python, "-m", "venv", str(folder / "venv")], check=True)

    def install(self, *packages: str) -> None:
        """Install packages into the environment."""
        pip = (str(self.bin / "python"), "-m", "pip", "install", "--quiet")
        limits = ("--constraint", str(ROOT / "constraints.txt"))
        subprocess.run([*pip, *limits, *packages], check=True, env=bare())

    def run(self, program: str, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
        """Run a program of the environment; return its output."""
        print(f"$ {program} {' '.join(arguments)}", file=sys.stderr)
        done = subprocess.run(
            [str(self.bin / program), *arguments],
            cwd=self.folder,
            env=bare(),
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode not in codes:
            sys.exit(f"{program} {' '.join(arguments)}: exit code {done.returncode}")
        return done.stdout.strip()


def build(out: Path, python: str, work: Path) -> Path:
    """Build the sdist, and the wheel from it; return the wheel."""
    place = Place(work / "build", python)
    place.install("build", "setuptools>=77", "wheel")
    shutil.rmtree(out, ignore_errors=True)
    place.run("python", "-m", "build", "--no-isolation", "--outdir", str(out.absolute()), str(ROOT))
    (wheel,) = out.glob("*.whl")
    return wheel.absolute()


def used(place: Place) -> dict[str, Any]:
    """Use the installed wheel as the README begins; return what came out.

    On a busy machine a frame rate may be missed (exit code 3): that is recorded, and goes on.
    """
    version = place.run("heat", "--version")
    place.run("heat", "doctor")
    place.run("heat", "profile", *SMALL)
    thinned = json.loads(
        place.run("heat", "thin", "--target-fps", "24", codes=(0, 3)).splitlines()[-1]
    )
    exported = place.run("heat", "export", "--format", "onnx", codes=(0, 3)).splitlines()[-1]
    place.run("heat", "data", "shapes", "set", "--train", "2", "--val", "2")
    keys = ("target_fps", "predicted_fps", "measured_fps")
    return {
        "version": version,
        "thin_met": thinned["met"],
        "exported": {key: json.loads(exported).get(key) for key in keys},
    }


def carried(place: Place, edge: Place) -> dict[str, Any]:
    """Detect with the bundle alone, in an environment of its own; return what came out."""
    edge.install(*EDGE)
    shutil.copytree(place.folder / "heat-run" / "bundle-onnx", edge.folder / "bundle")
    shutil.copytree(place.folder / "set" / "val", edge.folder / "val")
    found = edge.run("python", "bundle/detect.py", "val", "--save", "out")
    packages = edge.run("python", "-m", "pip", "list", "--format", "freeze").splitlines()
    return {"edge_packages": packages, "edge_images": json.loads(found.splitlines()[-1])["images"]}


def main() -> None:
    """Build, install and use; print what was seen as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--name")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        wheel = build(given.out, given.python, work)
        place = Place(work / "whole", given.python)
        place.install("torch")
        place.install(f"{wheel}[build]")
        result = {
            "files": sorted(path.name for path in given.out.iterdir()),
            **used(place),
            **carried(place, Place(work / "edge", given.python)),
        }
    tell(result, RESULTS / f"{given.name}.json" if given.name else None)


if __name__ == "__main__":
    main()
