"""Options that several commands share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token, convert

from deploy.teachers.asked import Asked

from .help_text import flowing

Format = Literal["onnx", "openvino", "tensorrt"]
RuntimeName = Literal["onnxruntime", "openvino", "tensorrt", "torch"]
SpaceName = Literal["micro", "mini", "midi", "base", "large"]

Out = Annotated[
    Path, Parameter(help="Workspace: the folder of all results, which later commands go on from.")
]
DeviceName = Annotated[str, Parameter(help="Device file to use; `heat devices` lists them.")]
Threads = Annotated[
    int | None,
    Parameter(
        help="CPU threads of the deployed model; by default the device's, or those of the profile "
        "or thinning that the command goes on from."
    ),
]
Runtime = Annotated[
    RuntimeName | None,
    Parameter(
        help="Runtime that measures and deploys; by default the device's, or that of the profile "
        "that the command goes on from."
    ),
]
PrecisionName = Literal["f32", "f16", "bf16", "int8"]
Precision = Annotated[
    PrecisionName | None,
    Parameter(help="Precision that is executed; a runtime that executes another is refused."),
]
Size = Annotated[
    str | None,
    Parameter(
        help="Network input, HEIGHTxWIDTH in multiples of 32, best in the proportion of the images."
    ),
]
Data = Annotated[
    Path | None,
    Parameter(help="Data set in COCO or YOLO format; by default that of the last training."),
]
Space = Annotated[
    SpaceName | None,
    Parameter(
        help="Size of the supernet. Without it: the workspace's, else large for profile and thin, "
        "midi for supernet, mini for fleet; build chooses."
    ),
]
StrideName = Literal["8", "16", "32"]
STRIDE = Parameter(help="Output stride in pixels; 16 for small objects, 8 for smaller ones.")
OutputStride = Annotated[StrideName | None, STRIDE]
Head = Annotated[
    Literal["nms", "voted", "one-to-one"] | None,
    Parameter(
        help="nms; voted, the default of build and fleet, averages the boxes that NMS keeps with "
        "those they overlap; one-to-one predicts each object once: no NMS on the device."
    ),
]
Boxes = Annotated[
    Literal["deltas", "distributions"] | None,
    Parameter(
        help="What the head predicts of a box: deltas (the paper); or distributions of its four "
        "sides, the default of build and fleet: higher AP, for 0 to 5 % more time."
    ),
]
NMSHead = Annotated[
    Literal["nms", "voted"] | None,
    Parameter(
        help="With box voting or without, by the same weights; as it was trained by default."
    ),
]
Backbone = Annotated[Path | None, Parameter(help="Weights of heat pretrain to start from.")]
AttentionName = Annotated[
    Literal["exact", "act", "enact", "pool"] | None,
    Parameter(help="Self-attention of a DETR's encoder; as it was trained by default."),
]
Rounds = Annotated[
    int | None, Parameter(help="Hash functions of ACT, up to 32: fewer are faster and coarser.")
]
Window = Annotated[int | None, Parameter(help="Tokens of a window of enact and pool.")]
Which = Annotated[
    Literal["trained", "best", "thinned"] | None,
    Parameter(
        help="trained: after its last epoch. best: after the epoch of the highest AP on val. "
        "thinned: the thinned network without training, where another is trained."
    ),
]
Calibrate = Annotated[
    bool,
    Parameter(
        help="Make probabilities of scores, as heat eval --calibrate did, or fitted on the val "
        "split."
    ),
]
Clusters = Annotated[
    int | None, Parameter(help="ACT's clusters at most, in a graph; calibrated by default.")
]

Epochs = Annotated[int | None, Parameter(help="Passes over the training data.")]
BatchSize = Annotated[int | None, Parameter(help="Images per pass, over all processes.")]
Accumulate = Annotated[int | None, Parameter(help="Passes whose gradients make one step.")]
LearningRate = Annotated[float | None, Parameter(help="Peak learning rate of the weights.")]
DropPath = Annotated[float | None, Parameter(help="Largest stochastic depth rate.")]
Autocast = Annotated[
    Literal["auto", "f32", "bf16", "f16"],
    Parameter(help="Autocast. auto: bf16 where the hardware computes it, else f32, on CUDA f16."),
]
Workers = Annotated[
    int | None,
    Parameter(
        help="Processes that load images; none for a short run, else one beside a CPU and more "
        "beside a GPU, by default."
    ),
]
Compile = Annotated[bool, Parameter(help="Let torch compile the network first.")]
TensorBoard = Annotated[
    bool,
    Parameter(
        help="Write losses, learning rate and AP of each epoch for TensorBoard too (pip install "
        "tensorboard), beside the checkpoint."
    ),
]
Seed = Annotated[int, Parameter(help="Seed of initialisation, order and augmentation.")]
Resume = Annotated[
    bool,
    Parameter(
        help="Go on with an unfinished run, or with one that --epochs makes longer; one that "
        "stopped early is finished, unless --patience is larger."
    ),
]
Restart = Annotated[bool, Parameter(help="Begin again, replacing what exists.")]

flowing(Asked)
Teaching = Annotated[Asked, Parameter(name="*")]
NO_TEACHER = Asked()


def whole(kind: Any, tokens: Sequence[Token]) -> Any:
    """Convert what was given; a whole number with a fraction is refused, not rounded."""
    if kind is int and any("." in token.value for token in tokens):
        raise ValueError(f"a whole number is needed, not {tokens[0].value}")
    return convert(kind, tokens)
