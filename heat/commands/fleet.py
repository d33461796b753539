"""The command `heat fleet`: everything for several devices and frame rates, by one training."""

from functools import partial
from pathlib import Path
from typing import Annotated

from ..records import Result
from ..workspace import DEFAULT, Workspace
from .asked_network import ending_of
from .find import find_data, find_space, target_of_thinning
from .options import (
    STRIDE,
    Autocast,
    Backbone,
    BatchSize,
    Boxes,
    Calibrate,
    Head,
    Out,
    Restart,
    Seed,
    Size,
    Space,
    StrideName,
    Workers,
)


def fleet(
    targets: Path,
    /,
    *,
    data: Path,
    space: Space = None,
    input_size: Size = None,
    output_stride: Annotated[StrideName, STRIDE] = "16",
    head: Head = None,
    boxes: Boxes = None,
    supernet_epochs: int = 12,
    epochs: int | None = None,
    batch_size: BatchSize = None,
    precision: Autocast = "auto",
    backbone: Backbone = None,
    finetune: bool = False,
    calibrate: Calibrate = True,
    workers: Workers = None,
    seed: Seed = 0,
    restart: Restart = False,
    out: Out = DEFAULT,
) -> Result:
    """One training, and a bundle for each device and frame rate of a fleet file.

    Run it again after an interruption and it goes on. A device that is added to the file later
    costs a latency table and a thinning, no training.

    Args:
        targets: TOML file with a table for each network, as: [camera] device = "cpu" target_fps =
            24.
        data: Data set in COCO or YOLO format, with train and val splits.
        supernet_epochs: Passes over the training data in which operators are chosen.
        epochs: Passes over the training data in which all networks are trained together; 150 by
            default.
        finetune: Then train each network by itself, for a tenth of these epochs: for those that
            are smaller than any that was trained.
    """
    from latency_tables.probe.machine import physical_cores
    from supernet.data.detection_set import check_trainable
    from supernet.train.recipes import SUPERNET, TrainConfig, changed, recipe
    from supernet.train.running import Running

    from ..stages.fleet_build import build_fleet
    from ..stages.inherited import FINETUNE_RATE
    from .fleet_file import find_members, read_fleet

    workspace = Workspace(out)
    read_fleet(targets)  # refused before the data is read
    train_set = find_data(workspace, data, "train")
    check_trainable(train_set)
    val_set = find_data(workspace, data, "val").numbered_as(train_set.names)
    ending = ending_of(workspace, ("supernet", "supernet-plan"), head, boxes)
    chosen = find_space(
        workspace,
        space,
        input_size,
        train_set.num_classes,
        stages=("supernet",),
        default="mini",
        output_stride=output_stride,
        head=ending.head,
        boxes=ending.boxes,
    )

    settings = partial(recipe, "small", batch_size=batch_size, precision=precision, seed=seed)

    def of_finetuning(epochs: int) -> TrainConfig:
        return settings(epochs=epochs, learning_rate=FINETUNE_RATE)

    return build_fleet(
        workspace,
        chosen,
        train_set,
        val_set,
        members=find_members(workspace, targets, space=chosen, data=data),
        target_of=target_of_thinning,
        supernet=changed(
            SUPERNET,
            epochs=supernet_epochs,
            batch_size=batch_size,
            precision=precision,
            seed=seed,
        ),
        elastic=settings(epochs=epochs),
        backbone=backbone,
        finetuning=of_finetuning if finetune else None,
        calibrate=calibrate,
        running=Running(
            resume=not restart, restart=restart, workers=workers, threads=physical_cores()
        ),
    )
