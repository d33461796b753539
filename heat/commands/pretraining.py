"""The command that pretrains a backbone: by classes, or by the features of a teacher."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from ..records import Result
from ..workspace import DEFAULT, Workspace
from .asked_network import ending_in, find_heatdetr
from .options import (
    Accumulate,
    Autocast,
    BatchSize,
    Compile,
    DropPath,
    Epochs,
    LearningRate,
    Out,
    OutputStride,
    Restart,
    Resume,
    Seed,
    Size,
    TensorBoard,
    Workers,
)
from .together import given

if TYPE_CHECKING:
    from deploy.teachers.encoder import Normalisation


def pretrain(
    *,
    data: Annotated[list[Path], Parameter(negative=())],
    teacher: str | None = None,
    feature: Annotated[list[str], Parameter(negative=())] | None = None,
    teacher_size: str | None = None,
    teacher_norm: Literal["imagenet", "dino", "clip", "inception", "none", "raw"] | None = None,
    mean: Annotated[tuple[float, float, float] | None, Parameter(negative=())] = None,
    std: Annotated[tuple[float, float, float] | None, Parameter(negative=())] = None,
    views: int | None = None,
    cache_gb: float | None = None,
    architecture: Annotated[
        str | None,
        Parameter(
            help="Preset or architecture.json; the thinned one of the workspace by default, else "
            "medium."
        ),
    ] = None,
    input_size: Size = "224x224",
    output_stride: OutputStride = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    accumulate: Accumulate = None,
    learning_rate: LearningRate = None,
    drop_path: DropPath = None,
    precision: Autocast = "auto",
    workers: Workers = None,
    compile: Compile = False,
    tensorboard: TensorBoard = False,
    seed: Seed = 0,
    resume: Resume = False,
    restart: Restart = False,
    out: Out = DEFAULT,
) -> Result:
    """Train a backbone for --backbone of other commands: by a teacher's features, or by classes.

    With --teacher the backbone with SAM and SCM learns the features of a frozen encoder, on images
    without labels. Without, it learns to classify, by Swin's recipe.

    Args:
        data: With --teacher folders of images, nested, or detection sets, whose training images are
            used without their labels; give it several times for several. Without, a folder with
            train/CLASS/ and val/CLASS/ folders of images.
        teacher: Encoder: an ONNX file, a folder that transformers' save_pretrained wrote, or
            timm:NAME of a model whose weights are here.
        feature: Output, or any tensor of an ONNX file, to learn; several for several maps. The
            deepest output by default.
        teacher_size: Its input, HEIGHTxWIDTH; its own by default, else 224x224.
        teacher_norm: Values of its input: 0 to 1 (none), 0 to 255 (raw), -1 to 1 (inception), or of
            that mean and deviation; as the encoder states by default, else imagenet.
        mean: Instead, the mean of its input by channel, of values from 0 to 1.
        std: Instead, the deviation of its input by channel.
        views: Views of each image that it is shown: the whole, and further fixed crops; 1 by
            default.
        cache_gb: Most disk space of its features, 16 by default; where all take more, those of the
            other images are computed anew in every epoch.
    """
    from latency_tables.probe.machine import physical_cores
    from supernet.errors import UserError
    from supernet.heatdetr.input_size import parse_sides, parse_size
    from supernet.train.recipes import FEATURES, PRETRAIN, changed
    from supernet.train.running import Running

    config = changed(
        PRETRAIN if teacher is None else FEATURES,
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        drop_path=drop_path,
        precision=precision,
        seed=seed,
    )
    running = Running(
        resume=resume,
        restart=restart,
        workers=workers,
        threads=physical_cores(),
        compile=compile,
        tensorboard=tensorboard,
    )
    workspace = Workspace(out)
    if architecture is None:
        thinned = workspace.architecture
        architecture = str(thinned) if thinned.exists() else "medium"
    chosen = find_heatdetr(architecture).with_(input_size=parse_size(input_size or "224x224"))
    chosen = ending_in(chosen, output_stride)
    if teacher is None:
        from supernet.train.pretraining import load_image_folders

        from ..stages.pretrain import pretrain as by_classes

        about = {
            "--feature": feature,
            "--teacher-size": teacher_size,
            "--teacher-norm": teacher_norm,
            "--mean": mean,
            "--std": std,
            "--views": views,
            "--cache-gb": cache_gb,
        }
        if useless := given(about):
            raise UserError(f"{useless[0]} is about a teacher: give --teacher ENCODER")
        if len(data) > 1:
            raise UserError(f"--data {data[1]}: one folder, without --teacher")
        images = load_image_folders(data[0], "train")
        has_val = (data[0] / "val").is_dir()
        val = load_image_folders(data[0], "val", images.names) if has_val else None
        return by_classes(workspace, images, val, chosen, config, running)

    from deploy.teachers.encoder import EncoderRequest
    from supernet.data.unlabelled import find_images

    from ..stages.pretrain_features import Caching
    from ..stages.pretrain_features import pretrain_features as by_features

    request = EncoderRequest(
        source=teacher,
        features=_names(feature or ()),
        input_hw=None if teacher_size is None else parse_sides(teacher_size, "--teacher-size"),
        normalisation=_normalisation(teacher_norm, mean, std),
        threads=physical_cores(),
    )
    caching = Caching.of(views, cache_gb)
    return by_features(workspace, request, find_images(data), chosen, config, running, caching)


def _names(given: Sequence[str]) -> tuple[str, ...]:
    """Return names that are given one by one, or with commas."""
    return tuple(name for text in given for name in text.split(",") if name)


def _normalisation(
    preset: str | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
) -> "Normalisation | None":
    from deploy.teachers.encoder import PRESETS, Normalisation
    from supernet.errors import UserError

    if (mean is None) != (std is None):
        raise UserError("--mean and --std: both are needed, three numbers each")
    if mean is None or std is None:
        return PRESETS[preset] if preset is not None else None
    if preset is not None:
        raise UserError(f"--teacher-norm {preset} and --mean: one of them")
    if min(std) <= 0:
        raise UserError(f"--std {' '.join(map(str, std))}: numbers above 0 are needed")
    return Normalisation(mean, std)
