"""The keys of `card.json`: what a bundle is, how it decodes, and how it was checked.

Needs Python's own library only; every bundle's `detect.py` carries this file's text.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from supernet.errors import BundleError


class InputFacts(TypedDict):
    """The network's input and how an image is fitted into it."""

    height: int
    width: int
    layout: str
    dtype: str
    colour: str
    resize: str
    pad_rgb: list[int]
    normalisation: str


class CalibrationRule(TypedDict):
    """By class index: the score s becomes sigmoid(logit(s) / temperature + bias)."""

    temperatures: list[float]
    biases: list[float]


class ScoreCalibrated(TypedDict):
    """What calibrated scores rest on, and the error of scores on images not fitted on.

    The errors are D-ECE: the mean difference between the score of a detection and the share of
    detections of such scores that find an object (IoU 0.5).
    """

    temperatures: dict[str, float]
    """By class name, as are the biases."""
    biases: dict[str, float]
    data: str
    split: str
    images: int
    detections: int
    fitted_to: str
    """Whose detections it was fitted on: torch's, or those of the quantized model."""
    error_before: float
    error_after: float
    errors_are: str


class DecodeRule(TypedDict):
    """How detections are decoded from a network's outputs (spec section 5).

    HeatDETR has all keys but `kind` and `focal`, the family of DETR only these two and `keep`;
    both have `calibration` where scores are calibrated.
    """

    keep: int
    """Most detections of an image."""
    stride: NotRequired[int]
    anchor_sizes: NotRequired[list[int]]
    """Sides of the square anchors, pixels of the network input."""
    anchor_offset: NotRequired[float]
    """Place of an anchor in its cell, as a share of the stride."""
    max_shift_px: NotRequired[float]
    max_log_growth: NotRequired[float]
    score_threshold: NotRequired[float]
    """Candidates of lower scores are dropped before NMS."""
    pre_nms: NotRequired[int]
    """Most candidates of NMS."""
    nms_iou: NotRequired[float | None]
    """None for a one-to-one head, which has no NMS."""
    vote_spread: NotRequired[float]
    """Spread of box voting; absent where boxes stay as they were predicted."""
    voters: NotRequired[int]
    """Candidates that vote."""
    kind: NotRequired[Literal["set"]]
    focal: NotRequired[bool]
    """Whether scores are sigmoids, not a softmax with a class for nothing."""
    calibration: NotRequired[CalibrationRule]
    """How scores of kept detections become probabilities; absent where they do not."""


class AccuracyCheck(TypedDict):
    """AP of torch and of the artefact on the same images, in points of 100."""

    torch_ap: float
    ap: float
    drop: float
    images: NotRequired[int]


class Thresholds(TypedDict):
    """The lowest score reported of each class, by its name, and how it was found."""

    thresholds: dict[str, float | None]
    thresholds_are: str


class Judged(TypedDict):
    """What was found on labelled images; without them `accuracy_check` is None and all there is."""

    accuracy_check: AccuracyCheck | None
    thresholds: NotRequired[dict[str, float | None]]
    thresholds_are: NotRequired[str]


class Facts(TypedDict, total=False):
    """What HEAT's commands state of the training, the thinning, the device and the accuracy."""

    heat: str
    """Version of HEAT."""
    spinning: str
    """How ONNX Runtime's threads wait: brief, always or never."""
    pinning: bool
    device: str | None
    """None, as is `device_model`, for an engine that was built for another machine."""
    device_model: str | None
    trained: bool
    training: Mapping[str, object] | None
    ranked_by: str | None
    target_fps: float | None
    """None, as are the predictions, where no thinning was for this network on this device."""
    predicted_fps: float | None
    held_out_error: float | None
    thinned_for: Mapping[str, object] | None
    clusters: Mapping[str, object] | None
    """Of ACT: the bounds on its clusters and how many clusterings exceeded them."""
    calibration: Mapping[str, object] | None
    """Of INT8: number and hash of the images."""
    score_calibration: ScoreCalibrated | None
    """None, or absent, where scores are the head's own."""
    accuracy: Mapping[str, object]
    """AP on a split; added to the card by `heat eval`."""


class Card(Facts, Judged):
    """The whole of `card.json`."""

    format: int
    model: str
    """Name of the model's file in the bundle."""
    model_format: str
    runtime: str
    runtime_version: str
    precision: str
    executed: dict[str, int]
    """Number of heavy nodes that the runtime executes in each precision."""
    threads: int
    measured_threads: NotRequired[int]
    """Threads that were timed: fewer where the bundle is for a machine with more."""
    names: list[str]
    """Classes, in the order of the network's outputs."""
    input: InputFacts
    raw: bool
    """The graph ends at the head's maps: `detect.py` decodes them."""
    padded: bool
    """The outputs have fixed shapes."""
    dynamic_batch: bool
    engine: Mapping[str, object] | None
    """The sidecar of a TensorRT engine."""
    outputs: dict[str, str]
    """Type, shape and meaning of each output, by name."""
    decode: DecodeRule
    architecture: Mapping[str, object]
    macs: int
    params: int
    parity: Mapping[str, object]
    """Largest differences from torch."""
    in_floating_point: list[str] | None
    """Entries that INT8 keeps in floating point."""
    measured_ms: float | None
    """None, as are the other times, where this machine cannot execute the model."""
    measured_fps: float | None
    p50_ms: float | None
    p95_ms: float | None
    date: str
    files: dict[str, str]
    """SHA-256 of the other files of the bundle, by name."""


NEEDED: Mapping[str, type] = {
    "model": str, "runtime": str, "precision": str, "threads": int, "names": list, "input": dict,
    "files": dict,
}  # fmt: skip
"""What loading a bundle needs, and its types."""


def check_card(card: Mapping[str, Any], path: Path) -> None:
    """Raise `BundleError` for a card that lacks what loading needs, or that leaves its folder."""
    damaged = f"{path} is damaged"
    for key, kind in NEEDED.items():
        if not isinstance(card.get(key), kind):
            raise BundleError(f"{damaged} ({key}: {str(card.get(key))[:60]}): export again")
    sides = [card["input"].get(side) for side in ("height", "width")]
    if not all(type(side) is int and 0 < side <= 2**15 and side % 32 == 0 for side in sides):
        raise BundleError(f"{damaged} (input of {sides} pixels): export again")
    if not card["names"] or not all(isinstance(name, str) for name in card["names"]):
        raise BundleError(f"{damaged} (names: {str(card['names'])[:60]}): export again")
    decode = card.get("decode")
    maps = decode.get("calibration") if isinstance(decode, dict) else None
    if maps is not None and not _are_maps(maps, len(card["names"])):
        raise BundleError(f"{damaged} (calibration: {str(maps)[:60]}): export again")
    for name in (*card["files"], card["model"]):
        check_inside(name, path)
    for name in loaded_files(card["model"]):
        if name not in card["files"] and (path.parent / name).exists():
            raise BundleError(f"{damaged} (it has no hash of {name}): export again")


def check_inside(name: str, path: Path) -> None:
    """Raise `BundleError` where a name in the file `path` leads out of that file's folder."""
    damaged = f"{path} is damaged"
    if Path(name).is_absolute() or ".." in Path(name).parts or not name.isprintable():
        raise BundleError(f"{damaged} ({name!r} is outside its folder): export again")
    if not (path.parent / name).resolve().is_relative_to(path.parent.resolve()):
        raise BundleError(
            f"{damaged} ({name!r} is a link to outside its folder): copy the file itself"
        )


def _are_maps(maps: object, count: int) -> bool:
    """Return whether a calibration has a temperature above 0 and a bias for each class."""
    if not isinstance(maps, dict):
        return False
    lists = [maps.get("temperatures"), maps.get("biases")]
    return all(
        isinstance(values, list)
        and len(values) == count
        and all(type(value) in (int, float) and math.isfinite(value) for value in values)
        for values in lists
    ) and all(value > 0 for value in maps["temperatures"])


def loaded_files(model: str) -> list[str]:
    """Return the names of the files that a runtime reads to load a model."""
    weights = [str(Path(model).with_suffix(".bin"))] if model.endswith(".xml") else []
    return [model, *weights, f"{model}.json"]  # the last is an engine's sidecar


class Waiting(TypedDict, total=False):
    """How the threads of a runtime wait, as `open_session` takes it."""

    spinning: bool
    pinning: bool


def waiting_of(card: Card) -> Waiting:
    """Return how the threads of a bundle wait."""
    found: Waiting = {}
    spinning = card.get("spinning")
    if spinning in ("always", "never"):
        found["spinning"] = spinning == "always"
    if card.get("pinning"):
        found["pinning"] = True
    return found
