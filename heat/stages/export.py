"""`heat export`: write the bundle, checked against torch and timed against the prediction."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from deploy.build_engine import plan_engine
from deploy.edge.card import Facts
from deploy.export import Exported, export_bundle
from deploy.form import Form, Format, refuse_gpu
from deploy.quantize import CALIBRATION_IMAGES
from deploy.serving import layout_of, serving_name, write_serving
from latency_tables.devices import Target
from supernet.data.detection_set import DetectionSet
from supernet.errors import PromiseError, UserError
from supernet.graph.style import Precision
from supernet.letterbox import Image, letterbox

from ..records import Result
from ..thinning.judging import images_of, judge_of, pixels_digest, quantized
from ..thinning.thinned import Thinned, find_thinned
from ..workspace import Workspace
from .clusters import bound_clusters, check_attention
from .network import Change, Which, as_it_is, load_network
from .profile import warn
from .promise import Promise, model_of, promise_of
from .score_calibration import calibration_for, card_facts

Quantizer = Literal["heat", "nncf"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What is to be exported."""

    format: Format = "onnx"
    precision: Precision | None = None
    """That of the target where it is None."""
    raw: bool = False
    dynamic_batch: bool = False
    opset: int | None = None
    gpu: str | None = None
    """Compute capability of an engine for a GPU that is not here."""
    quantizer: Quantizer = "heat"
    max_ap_drop: float = 1.0
    calibrate: bool = True
    """Whether scores become probabilities, by the labelled data or as `heat eval` recorded it."""
    serving: bool = False
    """Whether files for an inference server are written beside the bundle."""
    network: Which | None = None
    """Which network, and after which epoch."""

    def __post_init__(self) -> None:
        """Refuse what compares with nothing."""
        if math.isnan(self.max_ap_drop):
            raise UserError("--max-ap-drop nan: a number of points is needed")
        if self.serving:
            layout_of(self.format)

    def form(self, target: Target, pixels: Sequence[Image], timings: Path) -> Form:
        """Return the form, calibrated on images of the network's size; refuse what cannot be."""
        precision = self.precision or cast(Precision, target.precision)
        if precision != "int8" and self.quantizer != "heat":
            raise UserError(
                f"--quantizer {self.quantizer} makes int8, not {precision}: --precision int8"
            )
        return Form(
            format=self.format,
            precision=precision,
            raw=self.raw,
            dynamic_batch=self.dynamic_batch,
            opset=self.opset,
            threads=target.threads,
            engine=plan_engine(precision, self.gpu) if self.format == "tensorrt" else None,
            nncf=np.stack(pixels) if self.quantizer == "nncf" else None,
            timings=timings,
        )


def export(
    workspace: Workspace,
    target: Target,
    wish: Wish,
    *,
    data: DetectionSet | None = None,
    calibration: DetectionSet | None = None,
    images: Path | None = None,
    change: Change = as_it_is,
) -> Result:
    """Export what is trained, or, marked as such, what is not, and check it on the target.

    The images for the comparison with torch are the user's, the data's, or synthetic shapes; INT8
    is calibrated on `calibration`, else on those. Scores of a trained network become probabilities
    where there is labelled data (`wish.calibrate`). `change` is made to the architecture. Raises
    `PromiseError` when the artefact disagrees with torch, loses more AP on labelled data than it
    may, is executed in another precision, misses the target, or runs at another speed than
    predicted.
    """
    refuse_gpu(wish.format, target.device.kind)
    warn(target)
    network, names, training, weights = load_network(workspace, change, wish.network)
    thinned = find_thinned(workspace)
    parity_images = images_of(data, images)
    clusters = bound_clusters(network, parity_images)
    pixels: list[Image] = []
    if (wish.precision or target.precision) == "int8":
        if data is None and images is None:
            raise UserError("INT8 is calibrated on images: give --data or --images")
        samples = images_of(calibration, None, CALIBRATION_IMAGES) if calibration else parity_images
        pixels = [letterbox(image, network.architecture.input_size)[0] for image in samples]
    form = wish.form(target, pixels, workspace.root / "tensorrt-timings.cache")
    if thinned is not None and _is_elsewhere(thinned, form):
        form = replace(form, deployed_threads=thinned.threads or None)
    promise = promise_of(workspace, thinned, network.architecture, target, form)
    judge = None
    if data is not None and training is not None:
        judge = judge_of(data, names, network)
    plan = None
    check_attention(network, form)
    if form.precision == "int8" and form.nncf is None:
        assert network.heatdetr is not None, "check_attention refuses INT8 of DETR's family"
        plan = quantized(network.heatdetr, form, pixels, judge, wish.max_ap_drop)
    scores = None
    if wish.calibrate and training is not None:
        scores = calibration_for(workspace, network, weights, form, plan, judge)
    network.decode.calibration = scores[0].calibration if scores is not None else None
    facts: Facts = {
        **_facts(target, form, thinned, training, promise),
        "score_calibration": card_facts(scores[0], names, scores[1]) if scores else None,
        "clusters": clusters,
        "calibration": {"images": len(pixels), "sha256": pixels_digest(pixels)} if pixels else None,
    }
    setting = replace(target.setting, runtime=form.runtime, precision=form.precision)
    folder = workspace.bundle(form.format)
    with workspace.claimed(folder, f"exporting to {folder}"):
        done = export_bundle(
            network,
            folder,
            form,
            names=names,
            images=parity_images,
            facts=facts,
            plan=plan,
            judge=judge,
            max_ap_drop=wish.max_ap_drop,
            measure=lambda model: promise.measure(model, network.architecture, setting),
        )
        served = None
        if wish.serving:
            served = write_serving(
                done.folder, done.card, workspace.root / "serving", serving_name(workspace.root)
            )
    _print_warnings(form, done, thinned, training)
    result = {
        "bundle": str(done.folder),
        "serving": str(served) if served else None,
        **_reported(form, done, promise),
        "engine": done.card["engine"],
        "trained": training is not None,
        "head": network.heatdetr.architecture.head if network.heatdetr is not None else None,
        "threads": target.threads,
        "runtime": done.card["runtime"],
        "broken": promise.broken or None,
        "calibrate": wish.calibrate,
        "judged_on": str(data.root.absolute()) if data is not None else None,
    }
    workspace.record(f"export-{form.format}", result)
    if promise.broken:
        raise PromiseError(f"{promise.broken}; the bundle in {done.folder} states so", result)
    return result


def export_of(workspace: Workspace, format: Format) -> dict[str, Any]:
    """Return the record of the export that followed the last thinning; empty where none did."""
    name = f"export-{format}"
    later = workspace.finished(name) >= workspace.finished("thin")
    return workspace.stage(name) if later else {}


def _reported(form: Form, done: Exported, promise: Promise) -> Result:
    """Return what was checked, predicted and measured of a bundle."""
    speed, predicted = done.speed, promise.predicted_fps
    return {
        "format": form.format,
        "precision": done.card["precision"],
        "executed": done.card["executed"],
        "raw": form.raw,
        "accuracy_check": done.card["accuracy_check"],
        "score_calibration": done.card.get("score_calibration"),
        "in_floating_point": done.card["in_floating_point"],
        "parity_max_box_px": done.parity.worst_box_px,
        "parity_max_score": done.parity.worst_score,
        "parity_images": done.parity.images,
        "parity_matched": done.parity.matched,
        "predicted_fps": predicted,
        "target_fps": promise.target_fps,
        "measured_fps": round(speed.fps, 3) if speed else None,
        "measured_fps_best": _fps(speed.best_ms) if speed else None,
        "measured_fps_now": _fps(speed.p50_ms) if speed else None,
        "ratio": round(speed.fps / predicted, 4) if speed and predicted else None,
    }


def _facts(
    target: Target,
    form: Form,
    thinned: Thinned | None,
    training: Result | None,
    promise: Promise,
) -> Facts:
    """Return what the card states of training and promises."""
    from supernet.version import __version__

    run = thinned if thinned is not None and _is_elsewhere(thinned, form) else target
    return {
        "heat": __version__,
        "spinning": run.spinning,
        "pinning": run.pinning,
        "device": target.name if form.runs_here else None,
        "device_model": model_of(target) if form.runs_here else None,
        "trained": training is not None,
        "training": training,
        "ranked_by": thinned.ranked_by if thinned is not None else None,
        "target_fps": promise.target_fps,
        "predicted_fps": promise.predicted_fps,
        "held_out_error": promise.held_out_error,
        "thinned_for": _thinned_for(thinned) if thinned is not None else None,
    }


def _is_elsewhere(thinned: Thinned, form: Form) -> bool:
    """Return whether a bundle is to run on a device that is not here, as it was thinned for it."""
    return not thinned.here and thinned.runtime == form.runtime


def _print_warnings(
    form: Form, done: Exported, thinned: Thinned | None, training: Result | None
) -> None:
    """Warn of an engine that was not run, of another device, and of an untrained network."""
    if form.engine is not None and done.speed is None:
        print(
            f"warning: the engine is for compute capability {form.engine.capability}, which is not "
            "here: its graph agrees with torch in ONNX Runtime, the engine itself was NOT RUN",
            file=sys.stderr,
        )
    if thinned is not None and not thinned.here and done.speed:
        print(
            f"thinned for {thinned.device} by a table: {thinned.predicted_fps:.1f} FPS there "
            f"are {thinned.source.upper()}; {done.speed.fps:.1f} FPS were measured here",
            file=sys.stderr,
        )
    if training is None:
        print("warning: this network is UNTRAINED: heat train makes it detect", file=sys.stderr)


def _fps(ms: float) -> float | None:
    return None if math.isnan(ms) else round(1000.0 / ms, 3)


def _thinned_for(thinned: Thinned) -> Result:
    """Return the device the network was thinned for, and whether its frame rate is an estimate."""
    return {
        "device": thinned.device,
        "runtime": thinned.runtime,
        "precision": thinned.precision,
        "target_fps": thinned.target_fps,
        "predicted_fps": thinned.predicted_fps,
        "source": thinned.source,
        "measured_there": thinned.here,
    }
