"""Calibration of scores: recorded by `heat eval --calibrate`, or fitted when a network is exported.

A record holds for the weights and the architecture that it was fitted for, and for no others.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from deploy.edge.card import ScoreCalibrated
from deploy.form import Form
from deploy.judge import Judge
from supernet.checkpoint import file_digest
from supernet.data.score_calibration import Calibrated, ScoreCalibration, calibrate
from supernet.heatdetr.quantization import Quantization
from supernet.network import Network

from ..records import CalibrationRecord
from ..thinning.judging import quantized_rows
from ..workspace import Workspace

ERRORS_ARE = (
    "D-ECE, the mean difference between score and share of right detections (IoU 0.5); after: of "
    "each half of the images with what was fitted on the other half"
)
FittedTo = Literal["torch", "the quantized model"]


def record_calibration(
    workspace: Workspace, network: Network, weights: Path, found: Calibrated
) -> None:
    """Keep in the workspace a calibration of a network with the weights of a file."""
    record: CalibrationRecord = {
        "weights": file_digest(weights),
        "architecture": network.architecture.to_json(),
        **found.calibration.rule(),
        "fitted_on": found.data,
        "split": found.split,
        "images": found.images,
        "detections": found.detections,
        "error_before": found.error_before,
        "error_after": found.error_after,
    }
    workspace.record("score-calibration", record)


def recorded_calibration(
    workspace: Workspace, network: Network, weights: Path | None
) -> Calibrated | None:
    """Return the recorded calibration of a network; None, and say so, where it is of another."""
    record = workspace.stages().get("score-calibration")
    if record is None or weights is None:
        return None
    own = (file_digest(weights), network.architecture.to_json())
    if (record["weights"], record["architecture"]) != own:
        print(
            f"warning: the calibration of scores in {workspace.root} is of another network or of "
            "other weights, it is not used: heat eval --calibrate makes a new one",
            file=sys.stderr,
        )
        return None
    return Calibrated(
        ScoreCalibration.from_rule(record),
        record["fitted_on"],
        record["split"],
        record["images"],
        record["detections"],
        record["error_before"],
        record["error_after"],
    )


def calibration_for(
    workspace: Workspace,
    network: Network,
    weights: Path | None,
    form: Form,
    plan: Quantization | None,
    judge: Judge | None,
) -> tuple[Calibrated, FittedTo] | None:
    """Return how the scores of an export are calibrated, and to whose detections that was fitted.

    What is recorded holds, else the detections of torch on the labelled images, if there are any.
    Scores of INT8 are shifted, so that it is calibrated by its own detections on these.
    """
    by: FittedTo = "torch"
    fitted = None
    if judge is not None and form.precision == "int8":
        fitted = calibrate(quantized_rows(network, form, plan, judge), judge.data)
        by = "the quantized model"
    else:
        fitted = recorded_calibration(workspace, network, weights)
        if fitted is None and judge is not None:
            fitted = calibrate(judge.exact, judge.data)
    if fitted is not None:
        say_calibrated(fitted)
        return fitted, by
    if judge is not None:
        say_not_calibrated(judge.data.split)
    return None


def say_calibrated(found: Calibrated) -> None:
    """Print what calibration does to the error of scores."""
    print(
        f"scores calibrated on {found.images} images of {found.data} {found.split}: D-ECE "
        f"{found.error_before:.3f} before, {found.error_after:.3f} after (each half of the images "
        "by what was fitted on the other)",
        file=sys.stderr,
    )


def say_not_calibrated(split: str) -> None:
    """Print that scores are left as they are."""
    print(
        f"warning: scores are not calibrated: {split} has too few detections, right or wrong, or "
        "none that calibration would help",
        file=sys.stderr,
    )


def card_facts(found: Calibrated, names: Sequence[str], fitted_to: FittedTo) -> ScoreCalibrated:
    """Return the card's entry; classes that share a name have the values of the last of them."""
    return {
        "temperatures": dict(zip(names, found.calibration.temperatures, strict=True)),
        "biases": dict(zip(names, found.calibration.biases, strict=True)),
        "data": found.data,
        "split": found.split,
        "images": found.images,
        "detections": found.detections,
        "fitted_to": fitted_to,
        "error_before": found.error_before,
        "error_after": found.error_after,
        "errors_are": ERRORS_ARE,
    }
