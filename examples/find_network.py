"""Which network runs on a device at a frame rate? Without images and without training.

    python examples/find_network.py --device cpu-i7 --target-fps 24 --estimate

Without `--estimate` this machine is measured, which takes some minutes.
"""

import argparse
from pathlib import Path

import heat

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--device", default="cpu")
parser.add_argument("--target-fps", type=float, default=24.0)
parser.add_argument("--input-size", default="448x448")
parser.add_argument("--space", default="large")
parser.add_argument("--estimate", action="store_true", help="use the device's published figures")
parser.add_argument("--out", type=Path, default=Path("heat-run"))
asked = parser.parse_args()

table = heat.profile(
    device=asked.device,
    input_size=asked.input_size,
    space=asked.space,
    estimate=asked.estimate,
    out=asked.out,
)
print(f"{table['entries']} entries in {table.table}")

found = heat.thin(target_fps=asked.target_fps, trust_table=asked.estimate, out=asked.out)
print(f"{found.predicted_fps:.1f} FPS predicted, measured: {found.measured_fps or 'on no device'}")
print(f"the network: {found.architecture}")

figure = asked.out / "thinning.svg"
found.plot().savefig(figure)
print(f"the way to it: {figure}")
