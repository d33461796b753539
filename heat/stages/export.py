"""`heat export`: write the bundle, checked against torch and timed against the prediction."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np

from deploy.build_engine import plan_engine
from deploy.edge.bench import Speed
from deploy.edge.card import Facts
from deploy.export import Exported, export_bundle
from deploy.form import Form, Format
from deploy.quantize import CALIBRATION_IMAGES
from deploy.serving import layout_of, serving_name, write_serving
from latency_tables.devices import Target
from latency_tables.probe.timings import NetworkResult
from latency_tables.store import conditions_of
from latency_tables.table import LatencyTable
from supernet.data.detection_set import DetectionSet
from supernet.errors import PromiseError, UserError
from supernet.graph.style import Precision
from supernet.heatdetr.architecture import Architecture
from supernet.letterbox import Image, letterbox
from supernet.network import AnyArchitecture

from ..records import Result
from ..tables import recorded_table
from ..thinning.judging import images_of, judge_of, pixels_digest, quantized
from ..thinning.measuring import measure_bundle, warn_if_slower
from ..thinning.thinned import Thinned, find_thinned
from ..workspace import Workspace
from .clusters import bound_clusters, check_attention
from .network import Change, Which, as_it_is, is_thinned, load_network
from .profile import warn

Quantizer = Literal["heat", "nncf"]
MAX_MEASUREMENTS = 3
RATIO_BOUNDS = (0.9, 1.1)
"""Allowed measured / predicted frame rate."""


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
    serving: bool = False
    """Whether files for an inference server are written beside the bundle."""
    network: Which | None = None
    """Which network, where another is trained than the thinned one."""

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
    is calibrated on `calibration`, else on those. `change` is made to the architecture. Raises
    `PromiseError` when the artefact disagrees with torch, loses more AP on labelled data than it
    may, is executed in another precision, misses the target, or runs at another speed than
    predicted.
    """
    warn(target)
    network, names, training = load_network(workspace, change, wish.network)
    thinned = find_thinned(workspace)
    size = network.architecture.input_size
    parity_images = images_of(data, images)
    clusters = bound_clusters(network, parity_images)
    samples: list[Image] = []
    if (wish.precision or target.precision) == "int8":
        if data is None and images is None:
            raise UserError("INT8 is calibrated on images: give --data or --images")
        samples = parity_images
        if calibration:
            samples = images_of(calibration, None, CALIBRATION_IMAGES)
    pixels = [letterbox(image, size)[0] for image in samples]
    form = wish.form(target, pixels, workspace.root / "tensorrt-timings.cache")
    promised = _promised(workspace, thinned, network.architecture, target, form)
    table = _table_of(workspace, promised, target) if promised is not None else None
    if table is None:
        promised = None
    predicted = promised.predicted_fps if promised is not None else None
    target_fps = promised.target_fps if promised is not None else None
    setting = replace(target.setting, runtime=form.runtime, precision=form.precision)
    judge = judge_of(data, names) if data is not None and training is not None else None
    plan = None
    check_attention(network, form)
    if form.precision == "int8" and form.nncf is None:
        assert network.heatdetr is not None, "check_attention refuses INT8 of DETR's family"
        plan = quantized(network.heatdetr, form, pixels, judge, wish.max_ap_drop)
    facts: Facts = {
        **_facts(target, form, thinned, training, promised),
        "clusters": clusters,
        "calibration": {"images": len(pixels), "sha256": pixels_digest(pixels)} if pixels else None,
    }
    broken = ""

    def measure(model: Path) -> Speed:
        nonlocal broken
        results: list[NetworkResult] = []
        for attempt in range(MAX_MEASUREMENTS):
            speed = measure_bundle(model, network.architecture, setting, table, results)
            warn_if_slower(speed)
            broken = broken_promises(speed.fps, predicted, target_fps)
            if not broken:
                break
            print(f"warning: measurement {attempt + 1}: {broken}", file=sys.stderr)
        return speed

    done = export_bundle(
        network,
        workspace.bundle(form.format),
        form,
        names=names,
        images=parity_images,
        facts=facts,
        plan=plan,
        judge=judge,
        max_ap_drop=wish.max_ap_drop,
        measure=measure,
    )
    _print_warnings(form, done, thinned, training)
    served = None
    if wish.serving:
        served = write_serving(
            done.folder, done.card, workspace.root / "serving", serving_name(workspace.root)
        )
    result = {
        "bundle": str(done.folder),
        "serving": str(served) if served else None,
        "format": form.format,
        "precision": done.card["precision"],
        "executed": done.card["executed"],
        "raw": form.raw,
        "accuracy_check": done.card["accuracy_check"],
        "in_floating_point": done.card["in_floating_point"],
        "parity_max_box_px": done.parity.worst_box_px,
        "parity_max_score": done.parity.worst_score,
        "parity_images": done.parity.images,
        "parity_matched": done.parity.matched,
        "predicted_fps": predicted,
        "target_fps": target_fps,
        "measured_fps": round(done.speed.fps, 3) if done.speed else None,
        "measured_fps_best": _fps(done.speed.best_ms) if done.speed else None,
        "measured_fps_now": _fps(done.speed.p50_ms) if done.speed else None,
        "ratio": round(done.speed.fps / predicted, 4) if done.speed and predicted else None,
        "engine": done.card["engine"],
        "trained": training is not None,
        "threads": target.threads,
        "runtime": done.card["runtime"],
    }
    workspace.record(f"export-{form.format}", result)
    if broken:
        raise PromiseError(f"{broken}; the bundle in {done.folder} states so", result)
    return result


def _facts(
    target: Target,
    form: Form,
    thinned: Thinned | None,
    training: Result | None,
    promised: Thinned | None,
) -> Facts:
    """Return what the card states of training and promises; `promised` as `_promised`."""
    from supernet.version import __version__

    return {
        "heat": __version__,
        "spinning": target.spinning,
        "pinning": target.pinning,
        "device": target.name if form.runs_here else None,
        "device_model": _model(target) if form.runs_here else None,
        "trained": training is not None,
        "training": training,
        "ranked_by": thinned.ranked_by if thinned is not None else None,
        "target_fps": promised.target_fps if promised is not None else None,
        "predicted_fps": promised.predicted_fps if promised is not None else None,
        "held_out_error": promised.held_out_error if promised is not None else None,
        "thinned_for": _thinned_for(thinned) if thinned is not None else None,
    }


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


def broken_promises(fps: float, predicted: float | None, target_fps: float | None) -> str:
    """Return which promise a measured frame rate breaks, or an empty string."""
    if target_fps is not None and fps < target_fps:
        return f"{fps:.2f} FPS measured, target {target_fps:g}: run heat thin again"
    if predicted is not None and not RATIO_BOUNDS[0] <= fps / predicted <= RATIO_BOUNDS[1]:
        return (
            f"{fps:.2f} FPS measured, {predicted:.2f} predicted (ratio {fps / predicted:.3f}, "
            f"allowed {RATIO_BOUNDS[0]} to {RATIO_BOUNDS[1]}): run heat thin again"
        )
    return ""


def _model(target: Target) -> str:
    """Return the model of what executes: the GPU's where there is one, as in latency tables."""
    return target.gpu.model if target.gpu is not None else target.detected.model


def _table_of(workspace: Workspace, thinned: Thinned, target: Target) -> LatencyTable | None:
    """Return the table that was thinned by; None, and a warning, where it is not of this machine.

    Another version of the runtime, or other cores, would pass for a slow state of the same machine.
    """
    table = recorded_table(workspace, thinned.table)
    here = conditions_of(target, table.conditions.input_size)
    different = replace(here, device=table.conditions.device).differences(table.conditions)
    if not different:
        return table
    print(
        f"warning: the table that was thinned by is of other conditions ({different}): its "
        "prediction is not compared; heat thin measures anew",
        file=sys.stderr,
    )
    return None


def _promised(
    workspace: Workspace,
    thinned: Thinned | None,
    architecture: AnyArchitecture,
    target: Target,
    form: Form,
) -> Thinned | None:
    """Return the thinning's result if its prediction is about this network and how it is run."""
    if (
        thinned is not None
        and architecture.family == "heatdetr"
        and not (form.raw or form.dynamic_batch)
        and form.runs_here
        and (thinned.runtime, thinned.threads) == (form.runtime, target.threads)
        and thinned.precision == form.precision
        and thinned.model == _model(target)
        and workspace.architecture.exists()
        and is_thinned(architecture, Architecture.load(workspace.architecture))
    ):
        return thinned
    return None
