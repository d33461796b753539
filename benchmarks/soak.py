"""Long runs: does memory stay flat, does the rate stay steady, are descriptors given back?

    PYTHONPATH=. python benchmarks/soak.py --minutes 20 --steps 2000 --name soak

A bundle's `detect.py` works off a drawn video in a loop (a named pipe); `heat detect` does and
records it, which takes memory for the index of the MP4; then it does for a pipe at 30 FPS that
stands for a camera;
ENACT trains; a folder with 1,000 images of which 30 are broken is detected. Drift is the mean
resident memory of the last quarter by that of the second, minus 1: the first is warm-up. The last
line is one JSON object; with --name it goes to benchmarks/results/; --only replaces parts of it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from result import RESULTS, tell
from watched import Look, Run, watch

from supernet.data.shapes import make_shapes

HEAT = [sys.executable, "-m", "heat"]
SIZE = ["--input-size", "96x128"]
FEEDER = Path(__file__).with_name("feeder.py")
FPS = 30
DRIFT = 0.01
"""Growth of the memory that counts as flat."""
BROKEN = 30


def drift(looks: list[Look]) -> dict[str, Any]:
    """Return how memory and descriptors of a process change after its warm-up."""
    quarter = len(looks) // 4
    if quarter < 2:
        return {"looks": len(looks)}
    early, late = looks[quarter : 2 * quarter], looks[-quarter:]
    means = [float(np.mean([look.rss_mb for look in part])) for part in (early, late)]
    return {
        "looks": len(looks),
        "rss_mb": [round(mean, 1) for mean in means],
        "drift": round(means[1] / means[0] - 1, 4),
        "descriptors": [
            int(np.median([look.descriptors for look in part])) for part in (early, late)
        ],
    }


def work(run: Run) -> list[Look]:
    """Return the looks at the work itself: without the start, and the end in which files close."""
    return [look for look in run.looks if 0.1 * run.seconds < look.seconds < 0.98 * run.seconds]


def detect_stream(
    bundle: Path, root: Path, name: str, minutes: float, rate: float, *, recorded: bool
) -> dict[str, Any]:
    """Detect for so many minutes on a pipe: at the rate of a camera, or as fast as it goes (0)."""
    pipe, script = root / f"{name}.mjpeg", bundle / "detect.py"
    os.mkfifo(pipe)
    asked = [str(pipe), str(minutes * 60), str(rate)]
    feeder = subprocess.Popen([sys.executable, str(FEEDER), *asked])
    try:
        save = ["--save", str(root / name)] if recorded else []
        command = [*HEAT, "detect", str(bundle)] if recorded else [sys.executable, str(script)]
        options = [str(pipe), "--track", "--score", "0.2", *save]
        run = watch([*command, *options], folder=root, every_s=0.5)
    finally:
        feeder.kill()
        feeder.wait()
    result = json.loads(run.out.splitlines()[-1]) if run.code == 0 else {}
    return {
        "minutes": round(run.seconds / 60, 1),
        "recorded": recorded,
        "frames": result.get("frames"),
        "fps": result.get("fps"),
        "interval_ms": result.get("ms", {}).get("interval"),
        **drift(work(run)),
        "exit": run.code,
        "error": run.errors[-300:] if run.code else "",
    }


def train_enact(data: Path, root: Path, steps: int) -> dict[str, Any]:
    """Train a small DETR with ENACT for so many steps."""
    epochs = -(-steps // (len(list((data / "train").iterdir())) // 4))
    command = [*HEAT, "train", "--data", str(data), "--architecture", "detr-s", *SIZE]
    options = ["--attention", "enact", "--batch-size", "4", "--epochs", str(epochs)]
    out = ["--eval-every", "0", "--out", str(root / "enact")]
    run = watch([*command, *options, *out], folder=root, every_s=0.5)
    error = run.errors[-300:] if run.code else ""
    return {"steps": steps, **drift(work(run)), "exit": run.code, "error": error}


def detect_broken(bundle: Path, data: Path, root: Path, images: int) -> dict[str, Any]:
    """Detect on a folder of images of which some are cut off, empty, or no images."""
    folder = root / "images"
    folder.mkdir()
    drawn = sorted((data / "train").iterdir())
    content = drawn[0].read_bytes()
    bad = [b"", b"no image", content[:20], content[: len(content) // 200]]
    broken = set(np.random.default_rng(0).choice(images, BROKEN, replace=False).tolist())
    for number in range(images):
        path = folder / f"{number:05d}.jpg"
        if number in broken:
            path.write_bytes(bad[number % len(bad)])
        else:
            os.link(drawn[number % len(drawn)], path)
    found = root / "found"
    run = watch([*HEAT, "detect", str(bundle), str(folder), "--save", str(found)], folder=root)
    done = json.loads(run.out.splitlines()[-1])["images"] if run.out else 0
    return {
        "images": images,
        "broken": BROKEN,
        "done": done,
        "written": len(list(found.glob("*.jpg"))),
        "exit": run.code,
        "line": run.errors.strip().splitlines()[-1].replace(f"{root}/", "")[:200],
        **drift(work(run)),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="of the video and the camera")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--only", help="video,recording,camera,enact,broken")
    parser.add_argument("--note", default="")
    parser.add_argument("--name")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data, out, bundle = root / "data", root / "run", root / "run" / "bundle-onnx"
        make_shapes(data, train=40, val=4, seed=0)
        for words in (
            ["train", "--data", str(data), "--architecture", "nano", *SIZE, "--epochs", "1"],
            ["export", "--threads", "1"],
        ):
            run = watch([*HEAT, *words, "--out", str(out)], folder=root)
            if run.code:
                raise SystemExit(run.errors[-2000:])
        parts = {
            **{
                name: partial(
                    detect_stream, bundle, root, name, options.minutes, rate, recorded=recorded
                )
                for name, rate, recorded in (
                    ("video", 0.0, False),
                    ("recording", 0.0, True),
                    ("camera", FPS, True),
                )
            },
            "enact": lambda: train_enact(data, root, options.steps),
            "broken": lambda: detect_broken(bundle, data, root, options.images),
        }
        path = RESULTS / f"{options.name}.json" if options.name else None
        known = json.loads(path.read_text()) if options.only and path and path.exists() else {}
        found = {name: known[name] for name in parts if name in known}
        for name in options.only.split(",") if options.only else parts:
            found[name] = parts[name]()
            print(json.dumps({name: found[name]}), file=sys.stderr, flush=True)
    flat = {name: part.get("drift", 1.0) < DRIFT for name, part in found.items()}
    tell({**found, "flat": flat, "note": options.note}, path)


if __name__ == "__main__":
    main()
