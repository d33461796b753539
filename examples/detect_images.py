"""Detect with a bundle, and hand the objects to other tools. Neither torch nor a GPU is needed.

    python examples/detect_images.py heat-run/bundle-onnx IMAGE...

Writes `results.json` in the format of COCO's results, and prints a table (pip install pandas).
`found.to_supervision()` gives `supervision.Detections` (pip install supervision).
"""

import argparse
import json
from pathlib import Path

import heat

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("bundle", type=Path)
parser.add_argument("images", type=Path, nargs="+")
parser.add_argument("--score", type=float, help="lowest score; each class's own by default")
parser.add_argument("--results", type=Path, default=Path("results.json"))
asked = parser.parse_args()

results = []
with heat.load(asked.bundle) as bundle:
    for number, path in enumerate(asked.images, 1):
        found = bundle.detect(path, score=asked.score)
        print(f"{path.name}: {len(found.scores)} objects in {found.latency_ms:.1f} ms")
        print(found.to_pandas().head())
        results += found.to_coco(image_id=number)
asked.results.write_text(json.dumps(results), encoding="utf-8")
print(f"{len(results)} objects are in {asked.results}")
