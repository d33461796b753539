"""Commands that train a network, or take a trained one: train, adopt."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ..records import Result
from ..workspace import DEFAULT, Workspace
from .asked_network import attending, ending_in
from .find import asked_of, find_data
from .options import (
    NO_TEACHER,
    Accumulate,
    AttentionName,
    Autocast,
    Backbone,
    BatchSize,
    Boxes,
    Compile,
    DropPath,
    Epochs,
    Head,
    LearningRate,
    Out,
    OutputStride,
    Restart,
    Resume,
    Rounds,
    Seed,
    Size,
    Teaching,
    TensorBoard,
    Window,
    Workers,
)
from .together import one_of


def train(
    *,
    data: Path,
    architecture: Annotated[
        str | None, Parameter(help="Preset or architecture.json; the thinned one by default.")
    ] = None,
    input_size: Size = None,
    output_stride: OutputStride = None,
    head: Head = None,
    boxes: Boxes = None,
    backbone: Backbone = None,
    weights: Annotated[
        Path | None,
        Parameter(
            help="Network to start from: a workspace, a .safetensors file or a torch checkpoint. "
            "What fits by name and shape is taken, class outputs by class name."
        ),
    ] = None,
    teacher: Teaching = NO_TEACHER,
    unlabelled: Path | None = None,
    attention: AttentionName = None,
    rounds: Rounds = None,
    window: Window = None,
    recipe: Literal["small", "1x", "3x", "detr", "sam-detr", "mtkd"] = "small",
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    accumulate: Accumulate = None,
    learning_rate: LearningRate = None,
    schedule: Literal["cosine", "flat-cosine", "1x", "3x", "detr", "sam-detr", "mtkd"]
    | None = None,
    drop_path: DropPath = None,
    assign: Literal["uniform", "aligned"] | None = None,
    balanced: bool | None = None,
    precision: Autocast = "auto",
    inherit: bool = False,
    finetune: bool = False,
    eval_every: int = 10,
    patience: int | None = None,
    workers: Workers = None,
    compile: Compile = False,
    tensorboard: TensorBoard = False,
    seed: Seed = 0,
    resume: Resume = False,
    restart: Restart = False,
    out: Out = DEFAULT,
) -> Result:
    """Train the thinned architecture, or another, as the recipe says where nothing else is asked.

    Args:
        data: Folder in COCO or YOLO format with a train split; images without boxes are trained on
            as background. AP is reported on its val split, if it has one.
        unlabelled: Folder of images without labels, nested or not. With a teacher its boxes are
            learnt there, weighted by their scores. Without, every batch has as many of these images
            as labelled ones, and the averaged weights of the run label them as soon as they find
            30 % of the labelled objects; each box counts as often as such boxes are right on the
            labelled images.
        recipe: small trains from scratch on small sets, DETR's family at a rate of 4e-4; 1x and 3x
            are the paper's; detr and sam-detr are their authors'; mtkd fine-tunes a trained DETR
            (--weights) so that accuracy holds with ACT of --rounds.
        schedule: Cosine; flat-cosine, which falls in the last 30 % only; or the steps of a paper.
        assign: Label assignment: uniform matching (the paper) or task-aligned, which a one-to-one
            head always has.
        balanced: Draw images with a class that fewer than a tenth of the images show more often,
            sqrt(0.1 / share) times as often as others. An epoch has as many images as without.
        inherit: Start from the supernet's weights instead of from scratch.
        finetune: Train the network that an elastic supernet handed on further: --inherit, by
            default with a tenth of its epochs and a fifth of the recipe's learning rate.
        eval_every: Epochs between two scores on the val split; 0 for none.
        patience: Stop after so many epochs without a higher AP on the val split; checked at each
            score, counted from the first AP above 0. All epochs are trained by default. With
            flat-cosine AP rises again where the rate falls: add --schedule cosine.
    """
    from latency_tables.probe.machine import physical_cores
    from supernet.attention.act import ROUNDS
    from supernet.data.coco import find_split
    from supernet.errors import UserError
    from supernet.heatdetr.architecture import Architecture
    from supernet.heatdetr.input_size import parse_size
    from supernet.network import AnyArchitecture, find_architecture
    from supernet.train.recipes import DETR_RATE, DETR_SCHEDULE
    from supernet.train.recipes import recipe as recipe_of
    from supernet.train.running import Running

    from ..stages.train import judge_on, numbered_as_inherited
    from ..stages.train import train as run

    if not resume:  # runs of older versions began from two
        start = "--finetune" if finetune else "--inherit"
        one_of({start: inherit or finetune, "--backbone": backbone, "--weights": weights})
    asked = asked_of(teacher)
    workspace = Workspace(out)
    train_set = find_data(workspace, data, "train")
    chosen: AnyArchitecture
    if architecture is None:
        workspace.need("thin", "heat thin --target-fps FPS, or give --architecture")
        chosen = Architecture.load(workspace.architecture)
    else:
        chosen = find_architecture(architecture)
    if input_size is not None:
        chosen = chosen.with_(input_size=parse_size(input_size))
    if chosen.family == "heatdetr":
        chosen = ending_in(chosen, output_stride, head, boxes)
    else:
        own = {"output-stride": output_stride, "head": head, "boxes": boxes}
        for flag, value in (own | {"drop-path": drop_path, "assign": assign}).items():
            if value is not None:
                raise UserError(f"--{flag} is of HeatDETR, not of {chosen.family}")
    chosen = attending(chosen, attention, rounds, window)
    if finetune:
        from ..stages.inherited import FINETUNE_RATE, finetune_epochs

        inherit = True
        epochs = finetune_epochs(workspace, chosen) if epochs is None else epochs
        learning_rate = FINETUNE_RATE if learning_rate is None else learning_rate
    if chosen.family != "heatdetr" and recipe == "small":
        learning_rate = DETR_RATE if learning_rate is None else learning_rate
        schedule = DETR_SCHEDULE if schedule is None else schedule
    if inherit:
        train_set = numbered_as_inherited(workspace, train_set)
    config = recipe_of(
        recipe,
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        schedule=schedule,
        drop_path=drop_path,
        assign=assign,
        balanced=balanced,
        precision=precision,
        seed=seed,
    )
    judge, judged_on = None, ""
    if eval_every and find_split(data, "val") is not None:
        # Matched to the classes that are trained, and refused now where that cannot be.
        val_set = find_data(workspace, data, "val").numbered_as(train_set.names)
        judge, judged_on = judge_on(val_set), val_set.digest
        if patience is not None and not val_set.num_boxes:
            raise UserError(f"--patience {patience}: no object in {val_set.split}, its AP is none")
    running = Running(
        resume=resume,
        restart=restart,
        workers=workers,
        threads=physical_cores(),
        compile=compile,
        tensorboard=tensorboard,
        judge=judge,
        judged_on=judged_on,
        judge_every=eval_every,
        patience=patience,
    )
    return run(
        workspace,
        train_set,
        chosen,
        config,
        from_supernet=inherit,
        backbone=backbone,
        weights=weights,
        students=(ROUNDS if rounds is None else rounds) if recipe == "mtkd" else None,
        teacher=asked,
        unlabelled=unlabelled,
        running=running,
    )


def adopt(
    checkpoint: Path,
    /,
    *,
    architecture: str = "detr-r50",
    input_size: Size = None,
    data: Path | None = None,
    restart: Restart = False,
    out: Out = DEFAULT,
) -> Result:
    """Take a published DETR checkpoint (.pth), to be scored, exported, or distilled for ACT.

    Args:
        checkpoint: File in the layout of the authors' code; every key must fit.
        architecture: detr-r50, detr-r50-dc5, or an architecture.json.
        data: Data set in COCO or YOLO format; the network keeps its classes, by their category ids.
    """
    from supernet.errors import UserError
    from supernet.heatdetr.input_size import parse_size
    from supernet.network import find_architecture

    from ..stages.adopt import adopt as run

    chosen = find_architecture(architecture)
    if chosen.family == "heatdetr":
        raise UserError(f"--architecture {architecture}: a DETR is needed, for instance detr-r50")
    if input_size is not None:
        chosen = chosen.with_(input_size=parse_size(input_size))
    workspace = Workspace(out)
    found = find_data(workspace, data, "val") if data is not None else None
    return run(workspace, checkpoint, chosen, found, restart=restart)
