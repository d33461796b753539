"""From labelled images to a bundle that keeps a frame rate on this machine.

    python examples/own_data.py --data DIR --target-fps 24 --minutes 60

DIR is a folder in COCO or YOLO format with a train and a val split; `heat data check DIR` looks it
through. Run it again after an interruption and it goes on.
"""

import argparse
from pathlib import Path

import heat

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data", type=Path, required=True)
parser.add_argument("--target-fps", type=float, required=True)
parser.add_argument("--minutes", type=float, default=60.0)
parser.add_argument("--threads", type=int)
parser.add_argument("--out", type=Path, default=Path("heat-run"))
asked = parser.parse_args()

built = heat.build(
    data=asked.data,
    target_fps=asked.target_fps,
    minutes=asked.minutes,
    threads=asked.threads,
    out=asked.out,
)
print(f"{built.measured_fps} FPS, AP50 {built['ap50']}: {built.bundle}")
print(f"report: {built['report']}")
