"""Runs `heat build` on a data set and keeps its artefacts: log, cards, ledger, report.

    python benchmarks/build.py --data DIR --name bccd-cpu --target-fps 24 --threads 1 --minutes 35

An interrupted build goes on; the artefacts of a finished one are collected again. The same weights
are then exported to OpenVINO too, so that both runtimes are compared with torch on 20 real images.
Images of the data set stay in the workspace: its report is kept without them.
The last line is one JSON object.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def heat(*arguments: object, log: Path) -> dict[str, object]:
    """Run a heat command, append its stderr to the log, return its JSON line."""
    command = [sys.executable, "-m", "heat", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    with log.open("a", encoding="utf-8") as stream:
        stream.write(f"$ heat {' '.join(map(str, arguments))}\n{done.stderr}{done.stdout[:3000]}\n")
        stream.write(f"exit code {done.returncode}\n")
    if done.returncode not in (0, 3):
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}


def without_images(page: str) -> str:
    """Return a report without the images that it holds."""
    return re.sub(r'<img[^>]*src="data:image/[^"]*"[^>]*>', "(image left out)", page)


def main() -> None:
    """Build, export to both runtimes, evaluate, collect."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--target-fps", type=float, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--workspace", type=Path, default=Path("heat-run"))
    given = parser.parse_args()
    out, log = ["--out", given.workspace], given.workspace / "build.log"
    given.workspace.mkdir(parents=True, exist_ok=True)
    built = heat(
        "build", "--data", given.data, "--target-fps", f"{given.target_fps:g}",
        "--threads", given.threads, "--minutes", f"{given.minutes:g}", *out, log=log,
    )  # fmt: skip
    vino = heat("export", "--format", "openvino", "--threads", given.threads, *out, log=log)
    bundles = {name: given.workspace / f"bundle-{name}" for name in ("onnx", "openvino")}
    scored = heat("eval", "--bundle", bundles["openvino"], *out, log=log)
    torch = heat("eval", *out, log=log)
    # Last, so that the workspace records the runtime that is deployed.
    onnx = heat("eval", "--bundle", bundles["onnx"], *out, log=log)
    heat("detect", bundles["onnx"], given.data / "val", "--save", given.workspace / "detections",
         log=log)  # fmt: skip
    heat("report", *out, log=log)

    folder = RESULTS / given.name
    folder.mkdir(parents=True, exist_ok=True)
    for name, bundle in bundles.items():
        shutil.copy(bundle / "card.json", folder / f"card-{name}.json")
    for path in (
        log,
        given.workspace / "run.json",
        given.workspace / "thin" / "thinning.csv",
        given.workspace / "thin" / "architecture.json",
    ):
        shutil.copy(path, folder / path.name)
    page = (given.workspace / "report.html").read_text(encoding="utf-8")
    (folder / "report.html").write_text(without_images(page), encoding="utf-8")
    stages = json.loads((given.workspace / "run.json").read_text(encoding="utf-8"))["stages"]
    keys = ("target_fps", "predicted_fps", "measured_fps", "ratio", "threads", "model")
    print(
        json.dumps(
            {key: built.get(key) for key in keys}
            | {
                "stage_seconds": {
                    name: stages[name]["seconds"]
                    for name in ("profile", "supernet", "thin", "train")
                },
                "ap_onnx": onnx["ap"],
                "ap50_onnx": onnx["ap50"],
                "ap_openvino": scored["ap"],
                "ap_torch": torch["ap"],
                "openvino_fps": vino.get("measured_fps"),
            }
        )
    )


if __name__ == "__main__":
    main()
