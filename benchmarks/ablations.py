"""Ablations of network and recipe: AP without each part, by short runs on small data.

    python benchmarks/ablations.py --data bccd --work DIR --name bccd
    python benchmarks/ablations.py --set recipe --data bccd --work DIR --epochs 60 --name bccd

Each variant is trained with every seed by the same recipe and scored on val; finished runs are
kept, missing ones are trained on the next call. Removing a part also removes its multiply-adds,
which are reported. The last line is one JSON object; with --name it goes to
benchmarks/results/parts/ or recipe/.
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
from frontier import OURS
from kept_runs import kept_runs, mean_of
from recipe_levers import (
    DETECTION_LOSS,
    Batch,
    as_they_are,
    bilinear,
    boxes_weigh,
    ciou,
    flat_then_short,
    giou_and_distances,
    matchability_loss,
    of_several_sizes,
    quality_loss,
)
from recipe_tasks import Masked, SelfTaught, WithMasks
from result import RESULTS, tell
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import supernet.data.augment
import supernet.train.aligned
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
from supernet.graph.nodes import Array
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Call, Detector
from supernet.heatdetr.input_size import parse_size
from supernet.heatdetr.operators.channelwise import ChannelBlock
from supernet.heatdetr.operators.convbn import ConvBN
from supernet.heatdetr.operators.decode import Decode, make_anchors
from supernet.letterbox import Image, resized
from supernet.train.loop import fit
from supernet.train.matching import match
from supernet.train.optimise import rate_factor
from supernet.train.recipes import TrainConfig, recipe
from supernet.train.running import Running
from supernet.train.task import DetectionTask

BASE = OURS["heat-s"]


class First(nn.Module):
    """SAM's joint without its coarse input."""

    def __init__(self, align: nn.Module) -> None:
        """Take over the convolution of the original joint."""
        super().__init__()
        self.align = align

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Ignore the coarse map."""
        return self.align(fine)  # type: ignore[no-any-return]


class Twice(nn.Module):
    """TCM's split without TCM: both tasks see the same map."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map twice."""
        return x, x


class WithoutSam(Detector):
    """No semantics from the coarser stage: only the convolutions that set the widths."""

    def __init__(self, architecture: Architecture) -> None:
        """Replace the three joints and their global blocks."""
        super().__init__(architecture)
        for stage in (2, 3, 4):
            fuse = self.units[f"sam{stage}_fuse"]
            self.units[f"sam{stage}_fuse"] = First(fuse.align)  # type: ignore[arg-type]
            self.units[f"sam{stage}_global"] = nn.Identity()


class WithoutTcm(Detector):
    """SCM followed directly by the head, without TCM."""

    def __init__(self, architecture: Architecture) -> None:
        """Replace TCM."""
        super().__init__(architecture)
        self.units["tcm_t1"] = Twice()
        for index in range(architecture.t2_blocks):
            self.units[f"tcm_t2_{index}"] = nn.Identity()


class LevelDecode(Decode):
    """Anchors of three levels, concatenated; one for each cell."""

    def anchors(self, h: int, w: int) -> Array:
        """Return the anchors of strides 16, 32 and 64; the size of the map is not used."""
        import numpy as np

        height, width = self.image_size
        rows = [
            make_anchors(-(-height // s), -(-width // s), (2 * s, 4 * s), self.offset, s)
            for s in (16, 32, 64)
        ]
        return np.concatenate(rows)


class MultiLevel(Detector):
    """Three levels with TCM and head in common, as RetinaNet has it, in place of SCM's one."""

    def __init__(self, architecture: Architecture) -> None:
        """Add a lateral and a global block for each level."""
        super().__init__(architecture.with_(anchor_sizes=(32, 64)))
        _, _, d3, d4 = architecture.widths
        self.laterals = nn.ModuleList(ConvBN(d, d4) for d in (d3, d4, d4))
        self.mixers = nn.ModuleList(ChannelBlock(d4) for _ in range(3))
        for place in [place for place in self.units if place.startswith("scm_")]:
            del self.units[place]
        self.units["decode"] = LevelDecode(
            (1,), architecture.num_classes, architecture.input_size, architecture.anchor_offset
        )

    def wire(self, call: Call, image: Any) -> Any:
        """Run TCM and head on each level, and concatenate their outputs."""
        _, l2, p3, l4 = self.wire_backbone(call, image)
        l3 = self._wire_sam(call, 4, p3, l4)
        logits, deltas = [], []
        for x, lateral, mixer in zip((l2, l3, l4), self.laterals, self.mixers, strict=True):
            t_cls, t_reg = call("tcm_t1", mixer(lateral(x)))
            for index in range(self.architecture.t2_blocks):
                t_reg = call(f"tcm_t2_{index}", t_reg)
            c, b = call("head", t_cls, t_reg)  # [B, A, K, h, w]
            logits.append(c.flatten(3).transpose(1, 2).flatten(2))
            deltas.append(b.flatten(3).transpose(1, 2).flatten(2))
        return torch.cat(logits, 2)[:, None, :, None], torch.cat(deltas, 2)[:, None, :, None]


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
    "flat, then a short decay": FINE(rate=flat_then_short),
    "matchability-aware loss": FINE(loss=matchability_loss),
    "aligned assignment": FINE(shape={"anchor_offset": 0.5}, training={"assign": "aligned"}),
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
}
"""Changes of the recipe for training from scratch on small data."""
SETS = {"parts": PARTS, "recipe": RECIPES}


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
        shape = shape.with_(head="voted")  # as `heat build` ends it; trained as `nms` is
    network = variant.build(shape.with_(**variant.shape))
    config = recipe("small", epochs=options.epochs, seed=seed, **variant.training)
    config = replace(config, augment=replace(config.augment, **variant.augment))
    supernet.train.uniform.match = partial(match, k=variant.k)
    supernet.train.matching.IGNORE_ANCHOR_IOU = variant.least_iou
    supernet.train.muon.RMS = variant.rms
    supernet.train.aligned.detection_loss = variant.loss
    supernet.train.uniform.giou_pairs = variant.overlap
    supernet.train.loop.rate_factor = variant.rate
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
    data, val = load_split(options.data, "train"), load_split(options.data, "val")
    variants = SETS[options.set]
    done = kept_runs(
        options.work,
        options.only or variants,
        options.seeds.split(","),
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
    result = {
        "data": options.data.name,
        "input_size": options.input_size,
        "epochs": options.epochs,
        "model": options.model,
        "variants": sorted(rows, key=lambda row: -row["ap"]),
        "torch": torch.__version__,
    }
    tell(result, RESULTS / options.set / f"{options.name}.json" if options.name else None)


if __name__ == "__main__":
    main()
