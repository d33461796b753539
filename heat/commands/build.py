"""The command `heat build`: everything, for one device and frame rate."""

from pathlib import Path
from typing import Annotated

from ..records import Result
from ..workspace import DEFAULT, Workspace
from .asked_network import ending_of
from .find import find_data, find_target
from .options import (
    STRIDE,
    Backbone,
    Boxes,
    Calibrate,
    DeviceName,
    Format,
    Head,
    Out,
    Restart,
    Runtime,
    Seed,
    Size,
    Space,
    StrideName,
    Threads,
)


def build(
    *,
    data: Path,
    target_fps: float,
    device: DeviceName = "cpu",
    runtime: Runtime = None,
    threads: Threads = None,
    minutes: float = 60.0,
    format: Format = "onnx",
    space: Space = None,
    input_size: Size = None,
    output_stride: Annotated[StrideName, STRIDE] = "16",
    head: Head = None,
    boxes: Boxes = None,
    backbone: Backbone = None,
    distil: bool = False,
    calibrate: Calibrate = True,
    seed: Seed = 0,
    restart: Restart = False,
    out: Out = DEFAULT,
) -> Result:
    """Everything: plan, profile, supernet, thin, train, export, eval, report.

    Run it again after an interruption and it goes on.

    Args:
        data: Data set in COCO or YOLO format, with train and val splits.
        target_fps: Frames per second that the deployed network must reach, batch 1.
        minutes: Time to aim at; epochs and supernet size are chosen to fit, and fewer epochs are
            trained where steps turn out slower than planned, but 4 of the supernet and 12 of the
            network at least (at most 24 and 150).
        format: onnx for ONNX Runtime, openvino for OpenVINO, tensorrt for NVIDIA GPUs. The network
            is executed in f32.
        distil: The thinned network learns the supernet's maps beside the labels. Only where the
            supernet detects well: that of a build is trained briefly, and the network ends worse.
    """
    from deploy.form import RUNTIME_OF
    from supernet.data.detection_set import check_trainable
    from supernet.heatdetr.input_size import parse_size

    from ..stages.build import build as run

    workspace = Workspace(out)
    train_set = find_data(workspace, data, "train")
    check_trainable(train_set)
    val_set = find_data(workspace, data, "val").numbered_as(train_set.names)
    ending = ending_of(workspace, () if restart else ("plan",), head, boxes)
    return run(
        workspace,
        find_target(device, runtime or RUNTIME_OF[format], threads, "f32"),
        target_fps,
        train_set,
        val_set,
        minutes=minutes,
        format=format,
        space=space,
        input_size=parse_size(input_size) if input_size is not None else None,
        output_stride=int(output_stride),
        head=ending.head,
        boxes=ending.boxes,
        distil=distil,
        calibrate=calibrate,
        seed=seed,
        backbone=backbone,
        restart=restart,
    )
