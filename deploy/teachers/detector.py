"""Opens a detector as a teacher, whatever it is: HEAT's, an ONNX file, a transformers folder."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from deploy.gate import torch_detect
from supernet.checkpoint import file_digest, load_weights, read_info, weights_file
from supernet.data.evaluate import Found
from supernet.errors import BundleError, CheckpointError, UserError
from supernet.heatdetr.supernet import SearchSpace, Supernet
from supernet.letterbox import Image, read_image
from supernet.network import Network, build, read_architecture

from ..edge.detect import Bundle, is_bundle
from .asked import Asked
from .onnx_digest import onnx_digest
from .onnx_file import OnnxDetector
from .transformers_folder import TransformersDetector

READ = (
    "a bundle, a workspace or .safetensors file of HEAT, an .onnx file, or a folder of "
    "transformers (config.json) is needed"
)


BATCH = 4
"""Images that a teacher is given together."""


class Finder(Protocol):
    """Finds the objects of images: boxes xyxy in their pixels, scores, class indices."""

    def __call__(self, images: Sequence[Image], /) -> Iterator[Found]:
        """Yield the objects of each RGB image, best first."""


class ToSee(NamedTuple):
    """An image file, and the size of its image where that is known: it decides how it is turned."""

    path: Path
    size_hw: tuple[int, int] | None = None


class Seen(NamedTuple):
    """What a teacher found on an image."""

    image_hw: tuple[int, int]
    """Pixels of the decoded image."""
    found: Found


@dataclass(frozen=True, slots=True)
class TeacherFacts:
    """What is known of a teacher."""

    name: str
    kind: str
    """What it is, with what was recognised of it."""
    names: tuple[str, ...]
    """Its classes."""
    digest: str
    """Hash of its files and of what the user stated of it."""
    thresholds: Mapping[str, float | None]
    """The score of best F1 of each class, where its card has one."""


class Teacher:
    """A loaded detector. It is built in a process of its own: `Worker(Teacher, asked, threads)`."""

    def __init__(self, asked: Asked, threads: int = 1) -> None:
        """Load it; raise `UserError` where the path is no detector."""
        assert asked.teacher is not None
        torch.set_num_threads(threads)
        self._find, facts = _opened(asked.teacher, asked, threads)
        stated = [str(asked.teacher_format), str(asked.teacher_size), str(asked.teacher_norm)]
        text = json.dumps([facts.digest, stated, facts.names])
        self._facts = replace(facts, digest=hashlib.sha256(text.encode()).hexdigest())

    def facts(self) -> TeacherFacts:
        """Return what is known of it."""
        return self._facts

    def see(self, files: Sequence[ToSee]) -> list[Seen | None]:
        """Return what it finds on image files; None where one cannot be decoded."""
        images = [read_image(path, size_hw) for path, size_hw in files]
        found = self._find([image for image in images if image is not None])
        return [
            None if image is None else _seen(path, image, found)
            for (path, _), image in zip(files, images, strict=True)
        ]


def _seen(path: Path, image: Image, found: Iterator[Found]) -> Seen:
    """Return the next of what was found, on this image."""
    try:
        boxes, scores, labels = next(found)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise UserError(f"{path}: the teacher gives NaN or infinity: train or export it again")
    real = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return Seen(image.shape[:2], (boxes[real], scores[real], labels[real]))


def refuse_stated(asked: Asked) -> None:
    """Refuse options that state what an ONNX file leaves open, of a teacher that is none."""
    path = asked.teacher
    if path is None or path.suffix == ".onnx":
        return
    for flag in ("format", "size", "norm", "names"):
        if getattr(asked, f"teacher_{flag}") is not None:
            raise UserError(f"--teacher-{flag} is for ONNX files: {path} states it itself")


def _opened(path: Path, asked: Asked, threads: int) -> tuple[Finder, TeacherFacts]:
    if not path.exists():
        raise UserError(f"--teacher {path}: no such file or folder; {READ}")
    if path.suffix == ".onnx":
        digest = onnx_digest(path)  # first: it says which file with weights is missing
        model = OnnxDetector(path, asked, threads)
        digest = f"{digest} {model.format} {model.rule}"  # a file beside it may say how it is fed
        return model.detect, TeacherFacts(path.name, f"ONNX: {model}", model.names, digest, {})
    refuse_stated(asked)
    if is_bundle(path):
        return _bundle(path, threads)
    if path.is_dir() and (path / "config.json").exists():
        theirs = TransformersDetector(path)
        digest = "".join(map(file_digest, sorted(p for p in path.iterdir() if p.is_file())))
        kind = f"transformers: {theirs}"
        return theirs.detect, TeacherFacts(path.name, kind, theirs.names, digest, {})
    if path.suffix == ".safetensors" or path.is_dir():
        return _checkpoint(path)
    raise UserError(f"--teacher {path}: {READ}")


def _bundle(path: Path, threads: int) -> tuple[Finder, TeacherFacts]:
    bundle = Bundle(path, threads)

    def find(images: Sequence[Image]) -> Iterator[Found]:
        for image in images:
            found = bundle.detect(image, score=0.0)
            yield found.boxes_xyxy_px, found.scores, found.labels

    card = bundle.card
    digest = json.dumps(card["files"], sort_keys=True)
    facts = TeacherFacts(
        path.name, f"HEAT bundle, {card['runtime']}", tuple(bundle.names), digest,
        card.get("thresholds") or {},
    )  # fmt: skip
    return find, facts


def _checkpoint(path: Path) -> tuple[Finder, TeacherFacts]:
    network, names, digest = load_teacher(path)
    kind = f"HEAT checkpoint, {network.architecture.name}"
    detect = torch_detect(network)
    return partial(map, detect), TeacherFacts(path.name, kind, names, digest, {})


def load_teacher(
    path: Path, input_hw: tuple[int, int] | None = None
) -> tuple[Network, tuple[str, ...], str]:
    """Return a network of HEAT with its trained weights, its classes, and a hash of its file.

    The path is a workspace, the folder of a training or a checkpoint, of a detector or a supernet.
    With `input_hw` the network takes images of another size than it was trained with.
    """
    try:
        file = weights_file(path)
    except CheckpointError:
        raise UserError(f"--teacher {path}: {READ}") from None
    info = read_info(file)
    if info.kind == "backbone":
        raise CheckpointError(f"--teacher {file} holds a backbone, which detects nothing")
    network: Network
    if info.kind == "supernet":
        space = SearchSpace.from_json(info.description, str(file))
        if input_hw is not None:
            space = replace(space, template=space.template.with_(input_size=input_hw))
        supernet = Supernet(space)
        supernet.start_epoch(info.epochs - 1, info.epochs)  # the temperature of its last epoch
        network = supernet
    else:
        architecture = read_architecture(info.description, str(file))
        if input_hw is not None:
            architecture = architecture.with_(input_size=input_hw)
        network = build(architecture)
    load_weights(file, network)
    broken = [name for name, value in network.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise CheckpointError(f"--teacher {file}: {broken[0]} is NaN or infinity: train it again")
    return network.eval(), info.names, file_digest(file)


def is_heats(path: Path) -> bool:
    """Return whether a teacher is a network of HEAT, of which the weights are here."""
    if is_bundle(path):
        return False
    try:
        return read_info(weights_file(path)) is not None
    except (CheckpointError, BundleError):
        return False


def matched_classes(theirs: Sequence[str], ours: Sequence[str]) -> tuple[dict[int, int], list[str]]:
    """Return our index by theirs of the classes both have, and the names of theirs that are left.

    Raises `UserError` where no name is the same, or where one is there twice.
    """
    place = {name: index for index, name in enumerate(ours) if list(ours).count(name) == 1}
    found = {
        index: place[name]
        for index, name in enumerate(theirs)
        if name in place and list(theirs).count(name) == 1
    }
    if not found:
        raise UserError(
            f"the teacher's classes ({', '.join(theirs[:5])}{' ...' if len(theirs) > 5 else ''}) "
            f"are none of {', '.join(ours[:5])}{' ...' if len(ours) > 5 else ''}: rename the "
            "classes of the data, or --teacher-names for an ONNX file"
        )
    return found, [name for index, name in enumerate(theirs) if index not in found]


def thresholds_of(facts: TeacherFacts, default: float) -> npt.NDArray[np.float32]:
    """Return the score from which on a teacher's boxes are taken, by class [K]."""
    found = [facts.thresholds.get(name) for name in facts.names]
    return np.array([default if value is None else value for value in found], dtype=np.float32)
