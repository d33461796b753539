"""`heat eval`: COCO average precision of a bundle, or of the torch checkpoint."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from deploy.edge.card import Card
from deploy.edge.detect import Bundle, read_card
from deploy.export import write_card
from deploy.gate import torch_detect
from deploy.shown import shown_rows
from supernet.checkpoint import file_digest
from supernet.data.average_precision import Metrics, score
from supernet.data.best_thresholds import thresholds_of
from supernet.data.coco_file import ResultRow
from supernet.data.detection_set import DetectionSet
from supernet.data.evaluate import Detect, Found, confusion_matrix, found_rows
from supernet.data.mistakes import least_scores, missed_by_size, mistakes, suspected_labels
from supernet.data.reliability import calibration_error, reliability
from supernet.data.score_calibration import Calibrated, ScoreCalibration
from supernet.data.score_calibration import calibrate as fit
from supernet.data.scoring_memory import warn_of_memory
from supernet.data.true_positives import hits_by_class
from supernet.errors import UserError
from supernet.letterbox import Image
from supernet.train.threads import sparing

from ..records import Result
from ..views.learning import draw_confusion, draw_precision, draw_reliability
from ..views.mistakes import draw_mistakes
from ..workspace import Workspace
from .network import Change, Which, as_it_is, load_network
from .score_calibration import (
    record_calibration,
    recorded_calibration,
    say_calibrated,
    say_not_calibrated,
)

SUSPECTS = 30
"""Most labels that are listed as perhaps wrong."""


class Fitted(NamedTuple):
    """The images that a calibration of scores was fitted on."""

    data: str
    split: str
    error_after: float
    """D-ECE on images that it was not fitted on."""

    def elsewhere(self, data: DetectionSet) -> float | None:
        """Return the error to expect of other images, if these are those that it was fitted on."""
        return self.error_after if (data.root.name, data.split) == self[:2] else None


def evaluate_bundle(workspace: Workspace, folder: Path, data: DetectionSet) -> Result:
    """Score an exported bundle on a split and write the result into its card."""
    with Bundle(folder) as bundle:
        data = data.numbered_as(bundle.names)

        def detect(image: Image) -> Found:
            found = bundle.detect(image, score=0.0)  # AP is of all detections
            return found.boxes_xyxy_px, found.scores, found.labels

        rule = bundle.card.get("decode", {}).get("calibration")
        calibration = ScoreCalibration.from_rule(rule) if rule is not None else None
        rows, runtime = _found(detect, data), bundle.card["runtime"]
        facts = bundle.card.get("score_calibration")
    fitted = Fitted(facts["data"], facts["split"], facts["error_after"]) if facts else None
    of = dict(bundle.card["files"])
    metrics, result = _scored(workspace, rows, data, str(folder), of, runtime, calibration, fitted)
    accuracy = {**metrics.rounded(), "data": data.root.name, "split": data.split}
    write_accuracy(folder, bundle.card, accuracy)
    return result


def write_accuracy(folder: Path, scored: Card, accuracy: Mapping[str, object]) -> None:
    """Write a score into a bundle's card, unless another model was exported there meanwhile."""
    card = read_card(folder)
    if card["files"] == scored["files"]:
        write_card(folder, {**card, "accuracy": accuracy})
    else:
        print(
            f"warning: {folder} was exported again meanwhile: its card keeps its own accuracy",
            file=sys.stderr,
        )


def evaluate_checkpoint(
    workspace: Workspace,
    data: DetectionSet,
    change: Change = as_it_is,
    which: Which | None = None,
    *,
    calibrate: bool = False,
) -> Result:
    """Score the workspace's network in torch; `which` as `load_network`.

    With `calibrate` the calibration of its scores is fitted on the split and recorded; it holds for
    what is scored and exported from then on. An untrained one has no class names: it takes the
    data's, or is refused where it has another number of classes.
    """
    network, names, training, weights = load_network(workspace, change, which)
    known: Calibrated | None = None
    if training is None:
        classes = network.architecture.num_classes
        if classes != data.num_classes:
            raise UserError(
                f"the thinned network is untrained and has {classes} classes, "
                f"{data.annotation_path} has {data.num_classes}: heat train --data DIR trains it"
            )
        if calibrate:
            raise UserError(
                "--calibrate: the network is untrained: heat train --data DIR trains it"
            )
        print("warning: this network is UNTRAINED: its AP means nothing", file=sys.stderr)
        model = workspace.architecture
    else:
        assert weights is not None
        data, model = data.numbered_as(names), weights.parent
        known = None if calibrate else recorded_calibration(workspace, network, weights)
        network.decode.calibration = None if known is None else known.calibration
    with sparing():
        rows = _found(torch_detect(network), data)
    if calibrate:
        fitted = fit(rows, data)
        if fitted is None:
            say_not_calibrated(data.split)
            workspace.forget("score-calibration")  # an older one is not what was asked for
        else:
            say_calibrated(fitted)
            assert weights is not None, "an untrained network was refused"
            record_calibration(workspace, network, weights, fitted)
            rows = fitted.calibration.of_rows(rows, data)
            known = fitted
    of = Fitted(known.data, known.split, known.error_after) if known is not None else None
    calibration = known.calibration if known is not None else None
    digest = None if weights is None else file_digest(weights)
    _, result = _scored(workspace, rows, data, str(model), digest, "torch", calibration, of)
    return result


def _found(detect: Detect, data: DetectionSet) -> list[ResultRow]:
    warn_of_memory(data)
    return found_rows(detect, data)


def _scored(
    workspace: Workspace,
    rows: list[ResultRow],
    data: DetectionSet,
    model: str,
    of: str | dict[str, str] | None,
    runtime: str,
    calibration: ScoreCalibration | None,
    fitted: Fitted | None,
) -> tuple[Metrics, Result]:
    """Score, draw what was found right and wrong, and record it.

    `of` is the digest of the weights, or those of the bundle's files.
    """
    scores = score(rows, data)
    hits = hits_by_class(rows, data)
    bins = reliability(hits, None if calibration is None else calibration.least())
    error = calibration_error(bins)
    known = thresholds_of(hits, data.names)
    shown = shown_rows(rows, data, least_scores(known, data.names))
    wrong = mistakes(shown, data, known)
    precision, confusion, scores_drawn = (
        workspace.root / "eval" / name
        for name in ("precision.svg", "confusion.svg", "reliability.svg")
    )
    result: dict[str, object] = {
        **scores.metrics.rounded(),
        "data": str(data.root),
        "split": data.split,
        "scored": model,
        "of": of,
        "runtime": runtime,
        "scored_by": scores.by,
        "score_calibration": None if calibration is None else calibration.rule(),
        "calibration_error": None if error is None else round(error, 4),
        "calibration_error_elsewhere": None if fitted is None else fitted.elsewhere(data),
        "reliability": [asdict(each) for each in bins],
        "missed": missed_by_size(wrong, data),
        "suspected_labels": [
            {
                "image": str(record.path),
                "box_xyxy_px": [round(value, 1) for value in mistake.box_xyxy],
                "found": data.names[mistake.found] if mistake.found is not None else None,
                "score": round(mistake.score, 3),
                "label": data.names[mistake.truth] if mistake.truth is not None else None,
            }
            for record, mistake in suspected_labels(wrong)[:SUSPECTS]
        ],
        "precision_picture": str(precision),
        "confusion_picture": str(confusion),
        "reliability_picture": str(scores_drawn),
    }
    workspace.record("eval", result)  # before drawing: the score is what took the time
    draw_precision(scores, data.names, precision)
    draw_confusion(confusion_matrix(shown, data, score=0.0), data.names, confusion)
    draw_reliability(bins, scores_drawn)
    picture = draw_mistakes(wrong, data.names, workspace.root / "eval" / "mistakes.jpg")
    result["mistakes_picture"] = None if picture is None else str(picture)
    workspace.record("eval", result)
    return scores.metrics, result
