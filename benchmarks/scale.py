"""Sets as large as COCO: seconds and memory of checking, of the first batch, and of evaluation.

    PYTHONPATH=. python benchmarks/scale.py --images 10000,30000,118000 --name scale

The training images are hard links to a few drawn ones, with 7.3 boxes each of 80 classes; val has
5,000 images. Measured for each size are `heat data check`, `heat train` until its first batch with
two processes that load images, and for the largest `heat eval` of an untrained network, which finds
100 objects an image. The parent's peak is its resident memory, that of the loaders their share
(PSS). Growth is the seconds and megabytes of each size above the first, by those that so many more
images would take at the rate of the first two sizes. The last line is one JSON object; with --name
it goes to benchmarks/results/.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from result import RESULTS, tell
from watched import Look, Run, watch

BOXES = 860_000 / 118_000
CLASSES = 80
VAL = 5_000
DRAWN = 16
STAGES = ("check", "first_batch", "eval")
MOST_MB = 3_000
"""Memory that the parent may take."""
HEAT = [sys.executable, "-m", "heat"]
EVERY_STEP = [
    sys.executable,
    "-c",
    "import sys; from supernet import progress; progress.LINE_EVERY_S = 0.0;"
    "from heat.cli import main; sys.exit(main(sys.argv[1:]))",
]
"""The same with a line of progress for each batch."""


def write_split(root: Path, split: str, count: int, seed: int, size_wh: tuple[int, int]) -> int:
    """Write a split of hard links to drawn images; return its number of boxes."""
    rng, (width, height) = np.random.default_rng(seed), size_wh
    folder = root / split
    folder.mkdir(parents=True)
    drawn = []
    for index in range(min(DRAWN, count)):
        small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        path = root / f"{split}-{index}.jpg"
        cv2.imwrite(str(path), cv2.resize(small, size_wh, interpolation=cv2.INTER_CUBIC))
        drawn.append(path)
    images, annotations = [], []
    counts = rng.poisson(BOXES, count)
    counts[0] = max(1, counts[0])
    for index in range(count):
        name = f"{index:012d}.jpg"
        os.link(drawn[index % len(drawn)], folder / name)
        images.append({"id": index + 1, "file_name": name, "width": width, "height": height})
        corner = rng.random((counts[index], 2)) * (width * 0.8, height * 0.8)
        side = rng.random((counts[index], 2)) * (width * 0.19, height * 0.19) + 4
        for (x, y), (w, h), label in zip(
            corner, side, rng.integers(1, CLASSES + 1, counts[index]), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": int(label),
                    "bbox": [round(float(v), 2) for v in (x, y, w, h)],
                    "area": round(float(w * h), 2),
                    "iscrowd": 0,
                    "segmentation": [[round(float(v), 2) for v in (x, y, x + w, y, x, y + h)]],
                }
            )
    categories = [{"id": i + 1, "name": f"class {i + 1}"} for i in range(CLASSES)]
    (root / "annotations").mkdir(exist_ok=True)
    file = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(file))
    return len(annotations)


def facts(run: Run, **more: Any) -> dict[str, Any]:
    """Return what is reported of a command."""
    return {
        "seconds": round(run.seconds, 1),
        "parent_mb": round(run.peak_mb),
        "children": run.children,
        "children_mb": round(run.children_mb),
        "exit": run.code,
        **more,
    }


def measure(
    root: Path, images: int, val: int, workers: int, size_wh: tuple[int, int], *, evaluated: bool
) -> dict[str, Any]:
    """Make a set of so many training images, and measure the commands on it."""
    data, small, out = root / "data", root / "small", root / "run"
    boxes = write_split(data, "train", images, 0, size_wh)
    write_split(data, "val", val, 1, size_wh)
    write_split(small, "train", 4, 2, size_wh)
    size = ["--architecture", "nano", "--input-size", "96x128", "--batch-size", "4"]
    found: dict[str, Any] = {"images": images, "boxes": boxes}
    run = watch([*HEAT, "data", "check", str(data)], folder=root)
    _require(run, 0)
    found["check"] = facts(run)

    train = ["train", "--data", str(data), *size, "--epochs", "1", "--eval-every", "0"]
    first: list[float] = []

    def until(look: Look) -> bool:
        """Whether a batch was trained on: the first line of progress comes with it."""
        if "loss" in (root / "stderr.txt").read_text():
            first.append(look.seconds)
        return bool(first) and look.seconds > first[0] + 5

    command = [*EVERY_STEP, *train, "--workers", str(workers), "--out", str(out)]
    run = watch(command, until=until, folder=root)
    _require(run, 143, 0)
    found["first_batch"] = facts(run, first_s=round(first[0], 1) if first else None)
    if not evaluated:
        return found

    trained = [*HEAT, "train", "--data", str(small), *size, "--epochs", "1", "--restart"]
    _require(watch([*trained, "--out", str(out)], folder=root), 0)
    command = [*HEAT, "eval", "--data", str(data), "--split", "val", "--out", str(out)]
    run = watch(command, folder=root)
    _require(run, 0)
    found["eval"] = facts(run, images=val)
    return found


def _require(run: Run, *codes: int) -> None:
    if run.code not in codes:
        raise SystemExit(f"exit code {run.code}: {run.errors[-2000:]}")


def growth(sizes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return each size's seconds and megabytes by those that the first two sizes let expect."""
    if len(sizes) < 3:
        return {}
    low, high, *larger = sizes
    found: dict[str, Any] = {}
    for stage, key in (
        ("check", "seconds"), ("check", "parent_mb"),
        ("first_batch", "first_s"), ("first_batch", "parent_mb"), ("first_batch", "children_mb"),
    ):  # fmt: skip
        slope = (high[stage][key] - low[stage][key]) / (high["images"] - low["images"])
        expected = [low[stage][key] + slope * (s["images"] - low["images"]) for s in larger]
        found[f"{stage} {key}"] = [
            round(s[stage][key] / max(e, 1e-9), 2) for s, e in zip(larger, expected, strict=True)
        ]
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", default="10000,30000,118000")
    parser.add_argument("--val", type=int, default=VAL)
    parser.add_argument("--pixels", default="640x480", help="WIDTHxHEIGHT of the images")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the sets are made; a temporary one")
    parser.add_argument("--note", default="")
    parser.add_argument("--name")
    options = parser.parse_args()
    width, height = map(int, options.pixels.split("x"))
    sizes: list[dict[str, Any]] = []
    counts = [int(count) for count in options.images.split(",")]
    for images in counts:
        root = Path(tempfile.mkdtemp(prefix="heat-scale-", dir=options.folder))
        try:
            last = images == counts[-1]
            sizes.append(
                measure(root, images, options.val, options.workers, (width, height), evaluated=last)
            )
        finally:
            shutil.rmtree(root)
        print(json.dumps(sizes[-1]), file=sys.stderr, flush=True)
    parent = max(size[s]["parent_mb"] for size in sizes for s in STAGES if s in size)
    result = {
        "sizes": sizes,
        "growth": growth(sizes),
        "parent_mb": parent,
        "within": parent <= MOST_MB,
        "pixels": options.pixels,
        "note": options.note,
    }
    tell(result, RESULTS / f"{options.name}.json" if options.name else None)


if __name__ == "__main__":
    main()
