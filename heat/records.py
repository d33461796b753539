"""What the stages record in `run.json`, as far as later commands read it, and what commands print.

A stage records all that its command prints. The types here name the keys that are read back; the
others are for people and programs outside.
"""

from collections.abc import Mapping
from typing import NotRequired, TypedDict

Result = Mapping[str, object]
"""What a command prints as its last line: JSON values."""


class OnDevice(TypedDict):
    """Where and how a network is to run, of a profile or a thinning."""

    requested: str
    """Name of the device file that was asked for."""
    device: str
    """Name under which the device was measured."""
    runtime: str
    precision: str
    threads: int
    spinning: NotRequired[str]
    pinning: NotRequired[bool]
    """Absent in records of version 0.1.0, as is `spinning`."""
    here: bool
    """Whether the device is this machine."""
    source: str
    """Of the latency table: measured or estimated."""
    table: str
    """Path of the latency table."""
    space: Mapping[str, object]
    """The search space, for `SearchSpace.from_dict`."""


class Trained(TypedDict):
    """A training of the supernet or of a detector, or published weights."""

    data: str
    """Absolute path of the data set."""
    space: NotRequired[Mapping[str, object]]
    """Of a supernet: the search space."""


class Asked(TypedDict):
    """The options of a `heat build`; it is continued with the same ones only."""

    data: str
    target_fps: float
    device: str
    runtime: str
    threads: int
    precision: str
    minutes: float
    asked_space: str | None
    asked_size: list[int] | None
    output_stride: int
    head: str
    boxes: str


class BuildPlan(Asked):
    """What `heat build` chose for its options and its minutes."""

    space: Mapping[str, object]
    input_size: list[int]
    supernet_epochs: int


class SupernetPlan(TypedDict):
    """Epochs of a build's supernet, fixed when it is first started."""

    epochs: int
    space: Mapping[str, object]


class TrainPlan(TypedDict):
    """Epochs of a build's final training, fixed when it is first started."""

    epochs: int
    architecture: Mapping[str, object]


class CalibrationRecord(TypedDict):
    """A calibration of scores, and the network that it is of."""

    weights: str
    """SHA-256 of its file."""
    architecture: str
    """JSON of the network."""
    temperatures: list[float]
    """By class index, as are the biases."""
    biases: list[float]
    fitted_on: str
    """Name of the data set."""
    split: str
    images: int
    detections: int
    error_before: float
    error_after: float


class Suspect(TypedDict):
    """A label that may be wrong: a confident detection that it does not agree with."""

    image: str
    box_xyxy_px: list[float]
    found: str | None
    """Detected class."""
    score: float
    label: str | None
    """Labelled class; None where nothing is labelled."""


class Evaluated(TypedDict):
    """A score on a labelled split; the keys that may be absent are in records of version 0.1.0."""

    split: str
    scored: NotRequired[str]
    """Folder of the bundle or the checkpoint."""
    of: NotRequired[str | dict[str, str] | None]
    """Digest of the weights, or those of a bundle's files; None for an untrained network."""
    calibration_error: NotRequired[float | None]
    calibration_error_elsewhere: NotRequired[float | None]
    missed: NotRequired[dict[str, dict[str, tuple[int, int]]]]
    """By class and size: objects missed, and all objects."""
    suspected_labels: NotRequired[list[Suspect]]
    mistakes_picture: NotRequired[str | None]
    reliability_picture: NotRequired[str]


Stages = TypedDict(
    "Stages",
    {
        "profile": OnDevice,
        "pretrain": Result,
        "supernet": Trained,
        "elastic": Result,
        "thin": OnDevice,
        "train": Trained,
        "eval": Evaluated,
        "score-calibration": CalibrationRecord,
        "export-onnx": Result,
        "export-openvino": Result,
        "export-tensorrt": Result,
        "export-ladder": Result,
        "fleet": Result,
        "plan": BuildPlan,
        "supernet-plan": SupernetPlan,
        "train-plan": TrainPlan,
        "build": Result,
    },
    total=False,
)
"""The finished stages of a workspace, by name; each also has the time when it `finished`."""
