"""Can the network overfit 16 images? If not, loss, matching and decoding are inconsistent.

    python benchmarks/overfit.py --data coco_tiny --name coco_tiny
    python benchmarks/overfit.py --data coco_tiny --preset sam-detr-s --learning-rate 4e-4 \
        --optimizer muon --batch-size 2 --name coco_tiny-sam-detr
    python benchmarks/overfit.py ... --control conditional-detr --name coco_tiny-control

Trains on the first 16 images of the training split, among them some with crowds, without any
augmentation, and scores on the same images: all objects, the medium and large ones (more than 32x32
pixels in the stored image), and the small ones; a HeatDETR at strides 32 and 16, DETR and SAM-DETR
at their own. With --control the encoder, decoder and heads are those of transformers, of the same
sizes, behind the same backbone (`control.py`). --moving places the images at random inside the
network input, as every training did until 28 November 2026. --base, --queries and --images are for
bisecting. The last line is one JSON object; with --name it goes to
benchmarks/results/overfit-NAME.json.
"""

import argparse
import contextlib
import copy
import io
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from control import CONTROLS
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from result import RESULTS, tell

from deploy.gate import torch_detect
from supernet.counting import count_macs
from supernet.data.augment import AugmentConfig
from supernet.data.coco import load_split
from supernet.data.detection_set import DetectionSet
from supernet.data.evaluate import found_rows
from supernet.detr.family import DetrArchitecture
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.input_size import parse_size
from supernet.network import AnyArchitecture, build, find_architecture
from supernet.train.loop import fit
from supernet.train.recipes import TrainConfig
from supernet.train.running import Running

IMAGES = 16
CROWDS = 2
STILL = AugmentConfig(
    flip=0, scale=(1.0, 1.0), shift=0, shifted=0, brightness=0, contrast=0, saturation=0
)
MOVING = replace(STILL, shifted=1)
AREAS = {"all": (0, 1e10), "medium and large": (32**2, 1e10), "small": (0, 32**2)}


def chosen(data: DetectionSet, images: int = IMAGES) -> DetectionSet:
    """Return some images with objects, with crowds two of 16 or more."""
    crowded = {a["image_id"] for a in data.ground_truth["annotations"] if a.get("iscrowd")}
    with_objects = [record for record in data.records if len(record.labels)]
    crowds = CROWDS if images >= IMAGES else 0
    first = [record for record in with_objects if record.image_id in crowded][:crowds]
    rest = [record for record in with_objects if record not in first]
    return data.of([*first, *rest[: images - len(first)]])


def scores(rows: list[dict[str, Any]], data: DetectionSet) -> dict[str, dict[str, float]]:
    """Return AP and AP50 by size of the objects."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(data.ground_truth)
        truth.createIndex()
        scoring = COCOeval(truth, truth.loadRes(rows), "bbox")
        scoring.params.areaRng = [list(area) for area in AREAS.values()]
        scoring.params.areaRngLbl = list(AREAS)
        scoring.evaluate()
        scoring.accumulate()
    found = {}
    for index, name in enumerate(AREAS):
        precision = scoring.eval["precision"][:, :, :, index, -1]
        half = precision[0][precision[0] > -1]
        found[name] = {
            "ap": round(float(precision[precision > -1].mean()), 4),
            "ap50": round(float(half.mean()), 4),
        }
    return found


def learn(architecture: AnyArchitecture, data: DetectionSet, options: argparse.Namespace) -> Any:
    """Train on some images and score on the same."""
    torch.manual_seed(0)
    network: Any = build(architecture)
    if options.control:
        torch.manual_seed(0)
        network = CONTROLS[options.control](architecture)
    config = TrainConfig(
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        weight_decay=0.0,
        assign=options.assign,
        optimizer=options.optimizer,
        precision=options.precision,
        augment=MOVING if options.moving else STILL,
    )
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        fit(network, data, config, Path(folder), Running(workers=0))
    rows = found_rows(torch_detect(network.eval()), data)
    return {**scores(rows, data), "seconds": round(time.monotonic() - start)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--input-size", default="448x448")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--strides", default="32,16")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--assign", default="uniform")
    parser.add_argument("--optimizer", default="adamw", choices=["adamw", "muon"])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--control", choices=list(CONTROLS))
    parser.add_argument("--moving", action="store_true")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--base", type=int, help="channels of the backbone of DETR's family")
    parser.add_argument("--queries", type=int, help="of DETR's family")
    parser.add_argument("--name")
    options = parser.parse_args()
    data = chosen(load_split(options.data, "train"), options.images)
    size = parse_size(options.input_size)
    base = find_architecture(options.preset).with_(input_size=size, num_classes=data.num_classes)
    if isinstance(base, DetrArchitecture):
        sizes = {"base": options.base, "queries": options.queries}
        base = base.with_(**{name: size for name, size in sizes.items() if size})
    elif options.control or options.base or options.queries:
        parser.error("--control, --base and --queries go with a --preset of DETR's family")
    strides = (
        {stride: base.with_stride(stride) for stride in map(int, options.strides.split(","))}
        if isinstance(base, Architecture)
        else {base.stride: base}
    )
    result = {
        "network": options.control or options.preset,
        "moving": options.moving,
        "precision": options.precision,
        "gmacs": {},
        "stride": {},
        "images": len(data.records),
        "objects": int(np.sum([len(record.labels) for record in data.records])),
        "crowds": sum(bool(a.get("iscrowd")) for a in data.ground_truth["annotations"]),
        "epochs": options.epochs,
        "learning_rate": options.learning_rate,
        "batch_size": options.batch_size,
        "assign": options.assign,
        "optimizer": options.optimizer,
        "input_size": options.input_size,
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    if isinstance(base, DetrArchitecture):
        result |= {"base": base.base, "queries": base.queries}
    for stride, architecture in strides.items():
        if not options.control:
            result["gmacs"][str(stride)] = round(count_macs(architecture).total / 1e9, 3)
        result["stride"][str(stride)] = learn(architecture, data, options)
    tell(result, RESULTS / f"overfit-{options.name}.json" if options.name else None)


if __name__ == "__main__":
    main()
