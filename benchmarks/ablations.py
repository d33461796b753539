"""Ablations of network and recipe: AP without each part, by short runs on small data.

    python benchmarks/ablations.py --data bccd --work DIR --name bccd
    python benchmarks/ablations.py --set recipe --data bccd --work DIR --epochs 60 --name bccd

Each variant is trained with every seed by the same recipe and scored on val; finished runs are
kept, missing ones are trained on the next call. Removing a part also removes its multiply-adds,
which are reported. The last line is one JSON object; with --name it goes to
benchmarks/results/parts/ or recipe/, where variants that were not asked for keep their rows.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablated import MultiLevel, WithoutSam, WithoutTcm
from frontier import OURS
from kept_runs import check_result, kept_runs, mean_of, settings_of, with_earlier
from recipe_heads import with_kernels
from recipe_levers import (
    DETECTION_LOSS,
    Batch,
    PlainFirst,
    above_half,
    as_they_are,
    bilinear,
    boxes_weigh,
    ciou,
    giou_and_distances,
    matchability_loss,
    of_several_sizes,
    quality_loss,
)
from recipe_tasks import LateOverlap, Masked, SelfTaught, WithMasks
from result import RESULTS, tell
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import supernet.data.augment
import supernet.train.aligned
import supernet.train.box_loss
import supernet.train.feed
import supernet.train.loop
import supernet.train.matching
import supernet.train.muon
import supernet.train.task
import supernet.train.uniform
from deploy.gate import torch_detect
from supernet.boxes import giou_pairs
from supernet.data.coco import load_split
from supernet.data.detection_set import DetectionSet
from supernet.data.evaluate import evaluate
from supernet.heatdetr.architecture import Architecture, BoxKind
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.input_size import parse_size
from supernet.letterbox import Image, resized
from supernet.train.loop import fit
from supernet.train.matching import match
from supernet.train.optimise import rate_factor
from supernet.train.recipes import TrainConfig, recipe
from supernet.train.running import Running
from supernet.train.samples import Samples
from supernet.train.task import DetectionTask

BASE = OURS["heat-s"]
TASK_ALIGNED = {
    name: getattr(supernet.train.aligned, name) for name in ("ALPHA", "BETA", "BOX_WEIGHT")
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The changes of one variant."""

    build: Callable[[Architecture], Detector] = Detector
    stride: int = 32
    shape: Mapping[str, Any] = field(default_factory=dict)
    """Changed fields of the architecture."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Changed fields of the recipe."""
    augment: Mapping[str, Any] = field(default_factory=dict)
    """Changed fields of the augmentation."""
    k: int = 4
    """Anchors, and predictions, that a box claims."""
    least_iou: float = supernet.train.matching.IGNORE_ANCHOR_IOU
    """Anchors that overlap their box less are ignored."""
    rms: float = supernet.train.muon.RMS
    """Size of Muon's updates."""
    loss: Any = DETECTION_LOSS
    overlap: Callable[[Tensor, Tensor], Tensor] = giou_pairs
    """What the boxes learn, of predicted and wanted ones."""
    task: type[DetectionTask] = DetectionTask
    """What the network is trained for."""
    show: Callable[[Batch, np.random.Generator], Batch] = as_they_are
    """How a batch is changed before the network is shown it."""
    rate: Callable[[float, int, TrainConfig], float] = rate_factor
    """Learning rate of a step, of all steps, relative to its peak."""
    resize: Callable[[Image, tuple[int, int]], Image] = resized
    """How training images are resized."""
    samples: type[Samples] = Samples
    """What is made of the training images."""
    aligned: Mapping[str, float] = field(default_factory=dict)
    """Changed constants of the task-aligned assignment."""


PARTS = {
    "base": Variant(),
    "without SAM": Variant(build=WithoutSam),
    "without TCM": Variant(build=WithoutTcm),
    "multi-level": Variant(build=MultiLevel),
    "WMSA in S1": Variant(shape={"blocks": ("W", *BASE.blocks[1:])}),
    "self-attention": Variant(shape={"global_block": "oa"}),
    "self-attention of 82 % of the tokens": Variant(
        shape={"global_block": "oa", "token_sparsity": 0.18}
    ),
    "k = 8": Variant(k=8),
    "cells of 16 pixels": Variant(stride=16),
}
"""The paper's ablations, at this scale."""
FINE = partial(Variant, stride=16)
ALIGNED = partial(FINE, shape={"anchor_offset": 0.5}, training={"assign": "aligned"})
ADAMW = {"optimizer": "adamw", "vector_rate": 1.0}
RECIPES = {
    "recipe small": FINE(),
    "k = 8": FINE(k=8),
    "anchors in the middle of cells": FINE(shape={"anchor_offset": 0.5}),
    "AdamW": FINE(training=ADAMW),
    "AdamW, anchors of IoU 0.05": FINE(training=ADAMW, least_iou=0.05),
    "Muon's updates of 0.2": FINE(rms=0.2),
    "Muon's updates of 1.0": FINE(rms=1.0),
    "Muon's updates of 0.2, batches of 4": FINE(rms=0.2, training={"batch_size": 4}),
    "stride 8": FINE(stride=8),
    "boxes weigh 2": FINE(loss=partial(boxes_weigh, 2.0)),
    "boxes weigh a half": FINE(loss=partial(boxes_weigh, 0.5)),
    "CIoU": FINE(overlap=ciou),
    "GIoU and distances": FINE(overlap=giou_and_distances),
    "steps of several sizes": FINE(show=of_several_sizes),
    "taught by its averaged weights": FINE(task=SelfTaught),
    "boxes as masks": FINE(build=WithMasks, task=Masked),
    "a cosine from the start": FINE(training={"schedule": "cosine"}),
    "a rate that never falls below half": FINE(rate=above_half),
    "boxes as deltas": FINE(shape={"boxes": "deltas"}),
    "boxes as deltas of 1x1 convolutions": FINE(
        shape={"boxes": "deltas"}, build=partial(with_kernels, boxes=1)
    ),
    "boxes of 3x3 convolutions": FINE(build=partial(with_kernels, boxes=3)),
    "scores of 1x1 convolutions": FINE(build=partial(with_kernels, scores=1)),
    "claims by IoU late": FINE(task=LateOverlap),
    "matchability-aware loss": FINE(loss=matchability_loss),
    "aligned assignment": ALIGNED(),
    "aligned assignment, score times IoU^4, boxes weigh 2": ALIGNED(
        aligned={"ALPHA": 1.0, "BETA": 4.0, "BOX_WEIGHT": 2.0}
    ),
    "scores learn the IoU": FINE(loss=quality_loss),
    "training images resized bilinearly": FINE(resize=bilinear),
    "learning rate 2e-3": FINE(training={"learning_rate": 2e-3}),
    "learning rate 5e-4": FINE(training={"learning_rate": 5e-4}),
    "no mosaic": FINE(augment={"mosaic": 0.0}),
    "mosaics in half of the images": FINE(augment={"mosaic": 0.5}),
    "nothing pasted": FINE(augment={"pasted": 0.0}),
    "mosaics in half of the images, nothing pasted": FINE(augment={"mosaic": 0.5, "pasted": 0.0}),
    "zoom 0.4 to 1.8": FINE(augment={"scale": (0.4, 1.8)}),
    "no zoom": FINE(augment={"scale": (1.0, 1.0)}),
    "flips upside down too": FINE(augment={"flip_vertical": 0.5}),
    "colours as they are": FINE(
        augment={"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    ),
    "no averaged weights": FINE(training={"ema_decay": 0.0}),
    "drop path 0.1": FINE(training={"drop_path": 0.1}),
    "batches of 4": FINE(training={"batch_size": 4}),
    "vectors at one learning rate": FINE(training={"vector_rate": 1.0}),
    "vectors at fifteen learning rates": FINE(training={"vector_rate": 15.0}),
    "batches of 16": FINE(training={"batch_size": 16}),
    "rare classes more often": FINE(training={"balanced": True}),
    "strong augmentation to the end": FINE(training={"plain_epochs": 0}),
    "first epochs without strong augmentation": FINE(samples=PlainFirst),
}
"""Changes of the recipe for training from scratch on small data."""
SETS = {"parts": PARTS, "recipe": RECIPES}
BOXES: Mapping[str, BoxKind] = {"parts": "deltas", "recipe": "distributions"}
"""What the head predicts of a box where a variant does not change it: the paper's in its parts."""


def train(
    variant: Variant, seed: int, data: DetectionSet, val: DetectionSet, folder: Path,
    options: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    """Train a variant and score it."""
    size = parse_size(options.input_size)
    torch.manual_seed(seed)
    shape = OURS[options.model].with_(input_size=size, num_classes=data.num_classes)
    shape = shape.with_stride(variant.stride)
    if options.set == "recipe":
        shape = shape.with_(head="voted", boxes=BOXES["recipe"])  # as `heat build` ends it
    network = variant.build(shape.with_(**variant.shape))
    config = recipe("small", epochs=options.epochs, seed=seed, **variant.training)
    config = replace(config, augment=replace(config.augment, **variant.augment))
    supernet.train.uniform.match = partial(match, k=variant.k)
    supernet.train.matching.IGNORE_ANCHOR_IOU = variant.least_iou
    supernet.train.muon.RMS = variant.rms
    supernet.train.aligned.detection_loss = variant.loss
    supernet.train.box_loss.giou_pairs = variant.overlap
    supernet.train.loop.rate_factor = variant.rate
    supernet.train.feed.Samples = variant.samples
    for name, value in {**TASK_ALIGNED, **variant.aligned}.items():
        setattr(supernet.train.aligned, name, value)
    rng = np.random.default_rng(seed)
    DetectionTask.prepare = lambda _, batch, config: variant.show(batch, rng)
    supernet.train.task.DetectionTask = variant.task
    supernet.data.augment.resized = variant.resize
    start = time.monotonic()
    fit(network, data, config, folder, Running(resume=True, workers=0))  # no process unchanged
    metrics = evaluate(torch_detect(network.eval()), val, progress=False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.deployed()(torch.zeros(1, *size, 3, dtype=torch.uint8))
    return {
        "ap": round(100 * metrics.ap, 2),
        "ap50": round(100 * metrics.ap50, 2),
        "gmacs": round(counter.get_total_flops() / 2e9, 3),
        "seconds": round(time.monotonic() - start),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--set", choices=SETS, default="parts")
    parser.add_argument("--model", choices=OURS, default="heat-s")
    parser.add_argument("--input-size", default="320x320")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--only", nargs="+", help="names of variants")
    parser.add_argument("--name")
    options = parser.parse_args()
    if options.set == "parts" and options.model != "heat-s":
        parser.error(f"--model {options.model}: the parts are those of heat-s")
    settings = settings_of(options, "set", "model", "input_size", "epochs")
    settings |= {"boxes": BOXES[options.set], "schedule": recipe("small").schedule}
    path = RESULTS / options.set / f"{options.name}.json" if options.name else None
    check_result(path, settings)
    data, val = load_split(options.data, "train"), load_split(options.data, "val")
    variants = SETS[options.set]
    done = kept_runs(
        options.work / options.set,
        options.only or variants,
        options.seeds.split(","),
        settings,
        lambda name, seed, folder: train(variants[name], seed, data, val, folder, options),
    )
    rows = [
        {
            "variant": name,
            "ap": mean_of(runs, "ap"),
            "ap_by_seed": {seed: run["ap"] for seed, run in runs.items()},
            "ap50": mean_of(runs, "ap50"),
            "gmacs": next(iter(runs.values()))["gmacs"],
        }
        for name, runs in done.items()
    ]
    result = {**settings, "variants": rows, "torch": torch.__version__}
    result = with_earlier(result, path, "variants", "variant")
    result["variants"].sort(key=lambda row: -row["ap"])
    tell(result, path)


if __name__ == "__main__":
    main()
