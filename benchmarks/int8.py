"""Latency and AP of INT8: a trained network in f32 and INT8, in turns and by one evaluator.

    heat train --data DIR --architecture medium --input-size 448x448 --out RUN
    python benchmarks/int8.py --run RUN --data DIR --runtime openvino --name medium-bccd

Both are exported as a user does it, with every check on; the artefacts run in a race, each in a
process of its own, and are scored on the whole val split. The last line is one JSON object; with
--name it is also written to benchmarks/results/int8/.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from result import here, tell

from deploy.edge.detect import Bundle, read_card
from deploy.side_by_side import Entrant, race, ratio
from supernet.data.coco import load_split
from supernet.data.evaluate import Found, evaluate
from supernet.letterbox import Image

RESULTS = Path(__file__).parent / "results" / "int8"
FORMATS = {"onnxruntime": "onnx", "openvino": "openvino"}


def exported(options: argparse.Namespace, precision: str) -> Path:
    """Export in a precision and return the bundle, renamed so that both are kept."""
    command = [
        sys.executable, "-m", "heat", "export", "--format", FORMATS[options.runtime],
        "--precision", precision, "--data", options.data, "--threads", options.threads,
        "--max-ap-drop", options.max_ap_drop, "--out", options.run,
    ]  # fmt: skip
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    bundle = options.run / f"bundle-{FORMATS[options.runtime]}"
    kept: Path = options.run / f"bundle-{FORMATS[options.runtime]}-{precision}"
    if kept.exists():
        for path in kept.iterdir():
            path.unlink()
        kept.rmdir()
    return Path(bundle.rename(kept))


def ap(folder: Path, data: Path) -> float:
    """Return a bundle's AP on the val split, in points."""
    bundle = Bundle(folder)

    def detect(image: Image) -> Found:
        found = bundle.detect(image, score=0.0)
        return found.boxes_xyxy_px, found.scores, found.labels

    return 100.0 * evaluate(detect, load_split(data, "val")).ap


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="workspace of a trained network")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runtime", choices=sorted(FORMATS), default="openvino")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-ap-drop", type=float, default=1.0)
    parser.add_argument("--name")
    options = parser.parse_args()
    folders = {precision: exported(options, precision) for precision in ("f32", "int8")}
    cards = {precision: read_card(folder) for precision, folder in folders.items()}
    points = {precision: ap(folder, options.data) for precision, folder in folders.items()}
    full, small = race(
        [
            Entrant(
                name=precision,
                model=folder / cards[precision]["model"],
                runtime=options.runtime,
                precision=precision,
                threads=options.threads,
            )
            for precision, folder in folders.items()
        ]
    )
    size = (cards["f32"]["input"]["height"], cards["f32"]["input"]["width"])
    result: dict[str, Any] = {
        "ratio": round(ratio(full, small), 3),
        "ap_drop": round(points["f32"] - points["int8"], 3),
        "ap": {precision: round(value, 3) for precision, value in points.items()},
        "ms": {"f32": round(full.p50_ms, 3), "int8": round(small.p50_ms, 3)},
        "in_floating_point": cards["int8"]["in_floating_point"],
        "executed": cards["int8"]["executed"],
        "network": cards["f32"]["architecture"]["name"],
        "gmacs": round(cards["f32"]["macs"] / 1e9, 3),
        "data": options.data.name,
        **here(options.runtime, options.threads, size),
        "precision": "f32 against int8",
    }
    tell(result, RESULTS / f"{options.name}.json" if options.name else None)


if __name__ == "__main__":
    main()
