"""Pretraining of a backbone by image classification, and loading its weights.

Images are in folders named by their class: `train/<class>/*.jpg`, `val/<class>/*.jpg`. The
backbone is the network from the stem to the last stage, with the SAM between the stages.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoint import read_info
from ..data.augment import AugmentConfig, recoloured
from ..data.image_files import list_images
from ..data.random_crop import random_crop
from ..errors import CheckpointError, DataError
from ..heatdetr.architecture import LOCAL_OPERATORS, Architecture
from ..heatdetr.detector import Detector
from ..heatdetr.place import Place
from ..heatdetr.supernet import CANDIDATES, GlobalMixture, Mixture
from ..letterbox import Image, letterbox, read_image, resized
from .backbone_task import BackboneTask
from .recipes import TrainConfig
from .samples import Keyed, chance_of
from .transfer import Taken, taken

SMOOTHING = 0.1
"""Label smoothing, as Swin's recipe has it."""
AREA = (0.25, 1.0)
"""Area of a training crop, as a share of the image."""
RATIO = (3 / 4, 4 / 3)
"""Width over height of a crop."""


@dataclass(frozen=True, slots=True)
class ImageFolders:
    """The images of a split and their classes."""

    root: Path
    split: str
    names: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: tuple[int, ...]

    @property
    def digest(self) -> str:
        """Hash of the files, by their path within the set and their size, and of their classes."""
        files = [
            (str(path.relative_to(self.root)), path.stat().st_size, label)
            for path, label in zip(self.paths, self.labels, strict=True)
        ]
        return hashlib.sha256(json.dumps([self.names, files]).encode()).hexdigest()


def load_image_folders(root: Path, split: str, names: Sequence[str] | None = None) -> ImageFolders:
    """Find the images of a split; its classes must be those of `names`, if given."""
    folder = root / split
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: images are expected in {folder}/<class>/")
    found = tuple(
        sorted(
            place.name
            for place in folder.iterdir()
            if place.is_dir() and not place.name.startswith(".")
        )
    )
    if names is not None and not set(found) <= set(names):
        strange = sorted(set(found) - set(names))[0]
        raise DataError(f"{folder} has a class {strange!r} that the training split does not have")
    names = tuple(names or found)
    if len(names) < 2:
        raise DataError(f"{folder} has {len(names)} class folders: at least 2 needed")
    paths, labels = [], []
    for label, name in enumerate(names):
        found_here = list_images(folder / name)
        paths += found_here
        labels += [label] * len(found_here)
    if not paths:
        raise DataError(f"{folder}: no images in its {len(names)} class folders")
    return ImageFolders(root, split, names, tuple(paths), tuple(labels))


class Classifier(nn.Module):
    """A detector's backbone, the mean of its last map, and one linear layer."""

    def __init__(self, architecture: Architecture, num_classes: int) -> None:
        """Build a detector and remove all units that follow the backbone."""
        super().__init__()
        self.trunk = Detector(architecture)
        self.trunk.keep_wired(self.trunk.wire_backbone)
        self.classes = nn.Linear(architecture.widths[3], num_classes)

    def forward(self, image_BHW3: Tensor) -> tuple[Tensor]:
        """Map uint8 RGB images to class logits [B, K]."""
        last = self.trunk.wire_backbone(
            lambda place, *inputs: self.trunk.units[place](*inputs), image_BHW3
        )[-1]
        return (self.classes(last.mean((2, 3))),)


class ClassifyTask(BackboneTask):
    """Classification of images by a `Classifier`."""

    def __init__(self, network: Classifier, images: ImageFolders) -> None:
        """Train `network` on `images`, whose classes it has."""
        super().__init__(network, network.trunk.architecture)
        self.images = images
        self.names, self.num_images = images.names, len(images.paths)
        self.digest = images.digest

    def facts(self) -> dict[str, object]:
        """Return data, split and number of images."""
        of = self.images
        return {"data": of.root.name, "split": of.split, "images": self.num_images}

    def source(self, config: TrainConfig) -> Keyed:
        """Return cropped, flipped and recoloured images."""
        return Crops(self.images, self.size, config)

    def loss(
        self, outputs: Sequence[Tensor], targets: Any, config: TrainConfig
    ) -> dict[str, Tensor]:
        """Return cross entropy with smoothed labels."""
        wanted = torch.stack(targets)
        return {"classes": F.cross_entropy(outputs[0].float(), wanted, label_smoothing=SMOOTHING)}


class Crops(Keyed):
    """Random crops of the images of a split."""

    def __init__(self, images: ImageFolders, size: tuple[int, int], config: TrainConfig) -> None:
        """Take images to crop to `size`, augmented as `config.augment` has it."""
        self.images, self.size, self.config = images, size, config

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images.paths)

    def sample(self, epoch: int, index: int, again: int = 0) -> tuple[Tensor, Tensor]:
        """Return one crop, uint8 [H, W, 3], and its class."""
        rng = chance_of(self.config, epoch, index, again)
        image = _read(self.images.paths[index])
        pixels = crop_shown(image, self.size, self.config.augment, rng)
        return torch.from_numpy(pixels), torch.tensor(self.images.labels[index])


def crop_shown(
    image: Image, size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator
) -> Image:
    """Return a part of random area and shape, stretched to the input, flipped, recoloured."""
    x1, y1, x2, y2 = random_crop(image.shape, AREA, RATIO, rng)
    pixels = resized(image[y1:y2, x1:x2], size)
    if rng.random() < config.flip:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
    return recoloured(pixels, config, rng)


@torch.inference_mode()
def accuracy(network: Classifier, images: ImageFolders) -> dict[str, float]:
    """Return top-1 and top-5 accuracy, as shares."""
    top1 = top5 = 0
    size = network.trunk.architecture.input_size
    device = next(network.parameters()).device
    for path, label in zip(images.paths, images.labels, strict=True):
        pixels = torch.from_numpy(letterbox(_read(path), size)[0])[None].to(device)
        (logits,) = network(pixels)
        order = logits[0].topk(min(5, logits.shape[1])).indices.tolist()
        top1 += order[0] == label
        top5 += label in order
    return {"top1": top1 / len(images.paths), "top5": top5 / len(images.paths)}


def _read(path: Path) -> Image:
    image = read_image(path)
    if image is None:
        raise DataError(f"cannot decode {path}: remove it")
    return image


@torch.no_grad()
def load_backbone(path: Path, network: Detector) -> Taken:
    """Copy a pretrained backbone into a detector or a supernet, as far as shapes agree.

    In a supernet a local block goes to the operator of its kind at its position, a global block to
    that of its kind. TCM and the heads are never part of a backbone; SCM is where it was learnt
    from a teacher's features.
    """
    info = read_info(path)
    if info.kind != "backbone":
        raise CheckpointError(
            f"{path} holds a {info.kind}, not a backbone: heat pretrain makes one"
        )
    source = Architecture.from_json(info.description, str(path))
    own = network.state_dict()
    used: set[str] = set()
    other_shape: set[str] = set()
    left: list[str] = []
    for key, value in load_file(path).items():
        if not key.startswith("trunk.units."):
            left.append(key)
            continue
        place, _, rest = key.removeprefix("trunk.units.").partition(".")
        target = f"units.{_place_in(network, source, place)}.{rest}"
        if target not in own:
            left.append(key)
        elif own[target].shape == value.shape:
            own[target].copy_(value)
            used.add(target)
        else:
            other_shape.add(target)
    return taken(path, own, used, other_shape, left)


def _place_in(network: Detector, source: Architecture, place: str) -> str:
    """Return where a network has a backbone's unit: in a supernet within a mixture."""
    if place not in network.units:
        return place
    unit = network.units[place]
    if isinstance(unit, Mixture):
        own = Place.parse(place)
        assert own.position is not None
        letter = source.blocks[own.stage - 1][own.position]
        return f"{place}.operators.{CANDIDATES.index(LOCAL_OPERATORS[letter])}"
    if isinstance(unit, GlobalMixture):
        return f"{place}.blocks.{source.global_block}"
    return place
