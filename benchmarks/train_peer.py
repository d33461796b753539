"""Trains one peer from scratch by its own recipe, and writes the files that `frontier.py` reads.

    PYTHONPATH=. peers/bin/python benchmarks/train_peer.py yolo11n --data DIR --input-size 320x320 \
        --epochs 150 --out DIR

Runs in the peers' environment (see `peers.py`) with HEAT's data loading on its path. YOLO is
trained by ultralytics, with its defaults. The transformers' models are trained by AdamW, warm-up,
cosine, averaged weights and the flips, zooms and colours of RT-DETR's recipe; the loss is theirs.
RT-DETR's authors train in mixed precision: where the CPU multiplies bfloat16 it is used here too,
but for the heads' boxes and scores and the losses. The others are trained in float32. Nothing is
frozen. It writes `rows.json` (COCO result rows of the val split), `model.onnx` without NMS or
top-k, and, last, `facts.json`. An interrupted run goes on, a finished one is kept; other settings
are refused.
"""

import argparse
import copy
import csv
import json
import math
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from for_ultralytics import allow_no_torchvision, is_yolo, write_yolo
from kept_runs import origin, read_kept, refuse_others, settings_of
from peers import PEERS, Raw, thawed, yolo
from torch import Tensor, nn

from supernet.atomic import replacing, write_text
from supernet.data.augment import AugmentConfig
from supernet.data.coco import load_split
from supernet.data.detection_set import DetectionSet, Record
from supernet.data.evaluate import result_rows
from supernet.letterbox import box_factors, letterbox, read_image
from supernet.train.feed import batch_starts, feed
from supernet.train.optimise import autocast_type
from supernet.train.recipes import TrainConfig

RATES = {"detr-r50": 1e-4, "yolos-tiny": 1e-4, "rt-detr-r18": 2e-4, "d-fine-n": 4e-4}
"""Peak learning rates: the authors' at batches of 16 to 128, scaled by the root of the batch."""
MIXED = ("rt-detr-r18",)
"""Models that are trained in mixed precision, as their authors do."""
HEADS = ("enc_score_head", "enc_bbox_head", "decoder.class_embed", "decoder.bbox_embed")
"""Where a mixed network returns to float32: boxes in bfloat16 would be rounded to a pixel."""
IMAGENET = ("detr-r50", "yolos-tiny")
"""Models whose input is normalised by ImageNet's statistics; that of the others is 0 to 1."""
AUGMENT = AugmentConfig(
    scale=(0.5, 1.6), shift=0.2, brightness=0.3, contrast=0.3, saturation=0.4, hue=0.03
)
KEEP = 100


def prepared(name: str, images_BHW3: Tensor) -> Tensor:
    """Return an image as a model's input."""
    x = images_BHW3.permute(0, 3, 1, 2).float() / 255
    if name not in IMAGENET:
        return x
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (x - mean[:, None, None]) / std[:, None, None]


def precision_of(name: str) -> torch.dtype:
    """Return the type of number in which a model's convolutions and matrices are multiplied."""
    mixed = autocast_type("auto", torch.device("cpu")) if name in MIXED else None
    return mixed or torch.float32


class ExactLinear(nn.Linear):
    """A linear map that is computed in float32 inside autocast too."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the output in float32."""
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


def exact_heads(model: nn.Module) -> nn.Module:
    """Let the heads of a network compute in float32 inside autocast."""
    for name, module in model.named_modules():
        if name.removeprefix("model.").startswith(HEADS) and isinstance(module, nn.Linear):
            module.__class__ = ExactLinear
    return model


def labelled(targets: list[Any], size: tuple[int, int]) -> list[dict[str, Tensor]]:
    """Return targets for transformers' losses: box centres and sides as shares of the image."""
    unit = torch.tensor([size[1], size[0]] * 2)
    found = []
    for target in targets:
        x0, y0, x1, y1 = (target.boxes_xyxy / unit).unbind(1)
        boxes = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], 1)
        found.append({"class_labels": target.labels, "boxes": boxes})
    return found


def train_transformer(
    name: str, data: DetectionSet, size: tuple[int, int], options: argparse.Namespace
) -> tuple[nn.Module, int, float]:
    """Train until the epochs or the minutes are over; return the averaged model.

    Returns images seen and seconds of training too. A run that was ended goes on from the last
    epoch it finished, with the state of all it needs in a file in `options.out`.
    """
    torch.manual_seed(options.seed)
    precision = precision_of(name)
    model = thawed(PEERS[name](size, data.num_classes).model).train()
    if precision != torch.float32:
        model = exact_heads(model).to(memory_format=torch.channels_last)
    config = TrainConfig(
        epochs=options.epochs, batch_size=options.batch_size, seed=options.seed, augment=AUGMENT
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATES[name], weight_decay=1e-4)
    average = copy.deepcopy(model)
    parts = {"model": model, "optimizer": optimizer, "average": average}
    file = options.out / "checkpoint.pt"
    done, seen, before = load_state(file, parts) if file.exists() else (0, 0, 0.0)
    per_epoch = len(batch_starts(len(data.records), options.batch_size))
    done -= done % per_epoch  # of older runs, which counted other batches
    steps = options.epochs * per_epoch
    started = time.monotonic()
    epochs = range(done // per_epoch, options.epochs)
    for step, (images, targets) in enumerate(feed(data, size, config, epochs, workers=1), done):
        seconds = before + time.monotonic() - started
        spent = seconds / (60 * options.minutes)
        if step % per_epoch == 0:
            save_state(file, parts, step, seen, seconds)
        share = max(step / steps, min(1.0, spent))
        warm = min(1.0, (step + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = RATES[name] * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))
        inputs = {"pixel_values": prepared(name, images), "labels": labelled(targets, size)}
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            loss = model(**inputs).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        seen += len(images)
        decay = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            theirs = model.state_dict()
            for key, value in average.state_dict().items():
                new = theirs[key]
                value.lerp_(new, 1 - decay) if value.is_floating_point() else value.copy_(new)
        if step % 50 == 0:
            print(f"{name} step {step}/{steps} loss {loss.item():.3f}", flush=True)
        if spent >= 1:
            break
    return average.eval(), seen, before + time.monotonic() - started


def save_state(file: Path, parts: dict[str, Any], step: int, seen: int, seconds: float) -> None:
    """Write what a run needs to go on: its parts' states, its random numbers, its progress."""
    state = {key: part.state_dict() for key, part in parts.items()}
    state |= {"random": torch.get_rng_state(), "progress": (step, seen, seconds)}
    with replacing(file) as temporary:
        torch.save(state, temporary)


def load_state(file: Path, parts: dict[str, Any]) -> tuple[int, int, float]:
    """Read what `save_state` wrote; return steps done, images seen and seconds spent."""
    state = torch.load(file, weights_only=True)
    for key, part in parts.items():
        part.load_state_dict(state[key])
    torch.set_rng_state(state["random"])
    step, seen, seconds = state["progress"]
    return step, seen, seconds


@torch.inference_mode()
def found_by_transformer(
    name: str, model: nn.Module, record: Record, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes in pixels of the image, scores and labels."""
    image = read_image(record.path, (record.height, record.width))
    assert image is not None
    pixels, scale = letterbox(image, size)
    found = model(pixel_values=prepared(name, torch.from_numpy(pixels)[None]))
    logits, boxes = found.logits[0], found.pred_boxes[0]
    shares = logits.softmax(-1)[:, :-1] if name in IMAGENET else logits.sigmoid()
    scores, index = shares.flatten().topk(min(KEEP, shares.numel()))
    cx, cy, w, h = (boxes[index // shares.shape[1]] * torch.tensor([size[1], size[0]] * 2)).T
    corners = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1)
    corners /= torch.from_numpy(box_factors((record.height, record.width), scale))
    return corners, scores, index % shares.shape[1]


def run_transformer(
    name: str, train: DetectionSet, val: DetectionSet, options: argparse.Namespace, out: Path
) -> tuple[list[dict[str, Any]], int, float]:
    """Train, export, and return the rows of the val split, images seen and seconds of training."""
    size = options.size
    model, seen, seconds = train_transformer(name, train, size, options)
    rows = []
    for record in val.records:
        rows += result_rows(
            record, clipped(record, *found_by_transformer(name, model, record, size)), val
        )
    write_onnx(Raw(model), size, out)
    return rows, seen, seconds


def run_yolo(
    name: str, train: DetectionSet, val: DetectionSet, options: argparse.Namespace, out: Path
) -> tuple[list[dict[str, Any]], int, float]:
    """Train by ultralytics' own recipe; return what `run_transformer` does."""
    allow_no_torchvision()
    from ultralytics import YOLO

    work = out / "work"
    config = write_yolo(work / "data", {"train": train, "val": val})
    last = work / "run" / "weights" / "last.pt"
    begun = last.exists()
    model = YOLO(str(last) if begun else f"{name}.yaml")
    # Finished runs have epoch -1 in their checkpoint.
    if not begun or torch.load(last, weights_only=False)["epoch"] >= 0:
        model.train(
            data=str(config), epochs=options.epochs, imgsz=options.size[0],
            batch=options.batch_size, device="cpu", workers=1, pretrained=False, seed=options.seed,
            project=str(work), name="run", exist_ok=True, plots=False, val=False, resume=begun,
            verbose=False,
        )  # fmt: skip
    model = YOLO(str(last))
    rows = []
    for record in val.records:
        image = read_image(record.path, (record.height, record.width))
        assert image is not None
        bgr = np.ascontiguousarray(image[:, :, ::-1])
        boxes = model.predict(
            bgr, imgsz=options.size[0], conf=0.001, iou=0.7, max_det=KEEP, device="cpu",
            verbose=False, rect=False,
        )[0].boxes  # fmt: skip
        rows += result_rows(record, clipped(record, boxes.xyxy, boxes.conf, boxes.cls.long()), val)
    network = model.model.float().eval().fuse()
    head = network.model[-1]
    head.export, head.format = True, "onnx"
    write_onnx(network, options.size, out)
    with (last.parents[1] / "results.csv").open() as file:
        times = [float(row["time"]) for row in csv.DictReader(file)]
    # A continued run counts its time from 0: the median epoch is taken for all.
    epoch = statistics.median(b - a for a, b in pairwise([0.0, *times]))
    return rows, options.epochs * len(train.records), epoch * options.epochs


def clipped(
    record: Record, boxes: Tensor, scores: Tensor, labels: Tensor
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return the detections on an image as COCO result rows."""
    limit = torch.tensor([record.width, record.height] * 2)
    inside = boxes.clamp_min(0).minimum(limit)
    return inside.numpy(), scores.numpy(), labels.numpy()


def write_onnx(model: nn.Module, size: tuple[int, int], out: Path) -> None:
    """Export the network alone."""
    image = torch.rand(1, 3, *size)
    with torch.inference_mode(), tempfile.TemporaryDirectory(dir=out) as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            model.eval(), (image,), str(path), opset_version=18, dynamo=False, verbose=False
        )
        path.replace(out / "model.onnx")


def write_untrained(name: str, num_classes: int, size: tuple[int, int], out: Path) -> None:
    """Export a network with random weights."""
    if is_yolo(name):
        allow_no_torchvision()
    build = yolo(name) if is_yolo(name) else PEERS[name]
    write_onnx(build(size, num_classes), size, out)


def main() -> None:
    """Train the peer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="a name of peers.py, or another YOLO of ultralytics")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--input-size", default="320x320", help="HxW")
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--minutes", type=float, default=1e9, help="of training, at most")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--untrained", action="store_true", help="export alone")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.size = tuple(map(int, options.input_size.split("x")))
    out: Path = options.out
    settings = settings_of(options, "input_size", "epochs", "batch_size", "seed")
    begun, finished = out / "settings.json", out / "facts.json"
    if finished.exists():
        read_kept(finished, settings)
        return
    if begun.exists():
        refuse_others(begun, json.loads(begun.read_text()), settings)
    out.mkdir(parents=True, exist_ok=True)
    train, val = load_split(options.data, "train"), load_split(options.data, "val")
    if options.untrained:
        write_untrained(options.name, train.num_classes, options.size, out)
        return
    if is_yolo(options.name) and options.size[0] != options.size[1]:
        raise SystemExit(f"{options.input_size}: ultralytics trains {options.name} on squares")
    write_text(begun, json.dumps(settings))
    run = run_yolo if is_yolo(options.name) else run_transformer
    rows, seen, seconds = run(options.name, train, val, options, out)
    write_text(out / "rows.json", json.dumps(rows))
    facts = {
        "model": options.name,
        "images_seen": seen,
        "seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "precision": str(precision_of(options.name)),
        "batch_size": options.batch_size,
        "seed": options.seed,
        **origin(options.epochs),
        "settings": settings,
    }
    write_text(finished, json.dumps(facts))


if __name__ == "__main__":
    main()
