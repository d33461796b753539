"""`heat export`: write the bundle, checked against torch and timed against the prediction."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deploy.export import RUNTIME_OF, Format, export_bundle
from latency_tables.batch import Setting
from latency_tables.devices import Target
from supernet.architecture import Architecture
from supernet.checkpoint import load_weights, read_info
from supernet.coco import DetectionSet
from supernet.detector import Detector
from supernet.errors import DataError, PromiseError
from supernet.letterbox import Image, read_image
from supernet.shapes import draw

from ..workspace import Workspace
from .measuring import measure_bundle
from .profile import warn

PARITY_IMAGES = 20
MAX_MEASUREMENTS = 3
RATIO_BOUNDS = (0.9, 1.1)
"""Allowed measured / predicted frame rate."""
WRITTEN = "f32"
"""Precision that bundles are written in."""


def export(
    workspace: Workspace,
    target: Target,
    *,
    format: Format,
    data: DetectionSet | None = None,
    images: Path | None = None,
) -> dict[str, Any]:
    """Export what is trained, or, marked as such, what is not.

    The images for the comparison with torch are the user's, the data's, or drawn shapes. Raises
    `PromiseError` when the artefact disagrees with torch, misses the target, or runs at another
    speed than predicted.
    """
    from supernet.version import __version__

    warn(target)
    network, names, training = load_network(workspace)
    thinned = workspace.stage("thin") or {}
    same = _same_conditions(thinned, network.architecture, target, format)
    predicted = float(thinned["predicted_fps"]) if same else None
    target_fps = float(thinned["target_fps"]) if same else None
    setting = Setting(runtime=RUNTIME_OF[format], precision=WRITTEN, threads=target.threads)
    size = network.architecture.input_size
    reference_ms = float(thinned["reference_ms"]) if same else 0.0
    pictures = _pictures(data, images)
    facts = {
        "heat": __version__,
        "device": target.name,
        "device_model": target.detected.model,
        "trained": training is not None,
        "training": training,
        "ranked_by": thinned.get("ranked_by"),
        "target_fps": target_fps,
        "predicted_fps": predicted,
        "held_out_error": thinned.get("held_out_error") if same else None,
        "thinned_for": _thinned_for(thinned),
    }
    for attempt in range(MAX_MEASUREMENTS):
        done = export_bundle(
            network,
            workspace.bundle(format),
            format=format,
            names=names,
            images=pictures,
            threads=target.threads,
            facts=facts,
            measure=lambda model: measure_bundle(model, setting, size, reference_ms),
        )
        broken = broken_promises(done.speed.fps, predicted, target_fps)
        if not broken:
            break
        print(f"warning: measurement {attempt + 1}: {broken}", file=sys.stderr)
    if thinned and not thinned["here"]:
        print(
            f"thinned for {thinned['device']} by a table: {thinned['predicted_fps']:.1f} FPS there "
            f"are {thinned['source'].upper()}; {done.speed.fps:.1f} FPS were measured here",
            file=sys.stderr,
        )
    if training is None:
        print("warning: this network is UNTRAINED: heat train makes it detect", file=sys.stderr)
    result = {
        "bundle": str(done.folder),
        "format": format,
        "precision": done.card["precision"],
        "parity_max_box_px": done.parity.worst_box_px,
        "parity_max_score": done.parity.worst_score,
        "parity_images": done.parity.images,
        "parity_matched": done.parity.matched,
        "predicted_fps": predicted,
        "target_fps": target_fps,
        "measured_fps": round(done.speed.fps, 3),
        "measured_fps_now": round(1000.0 / done.speed.p50_ms, 3),
        "ratio": round(done.speed.fps / predicted, 4) if predicted else None,
        "trained": training is not None,
        "threads": target.threads,
        "runtime": done.card["runtime"],
    }
    workspace.record(f"export-{format}", result)
    if broken:
        raise PromiseError(f"{broken}; the bundle in {done.folder} says so", result)
    return result


def _thinned_for(thinned: dict[str, Any]) -> dict[str, Any] | None:
    """Say for which device the network was thinned, and whether its frame rate is an estimate."""
    if not thinned:
        return None
    return {
        "device": thinned["device"],
        "runtime": thinned["runtime"],
        "precision": thinned["precision"],
        "target_fps": thinned["target_fps"],
        "predicted_fps": thinned["predicted_fps"],
        "source": thinned["source"],
        "measured_there": thinned["here"],
    }


def broken_promises(fps: float, predicted: float | None, target_fps: float | None) -> str:
    """Say which promise a measured frame rate breaks, or return an empty string."""
    if target_fps is not None and fps < target_fps:
        return f"{fps:.2f} FPS measured, target {target_fps:g}: run heat thin again"
    if predicted is not None and not RATIO_BOUNDS[0] <= fps / predicted <= RATIO_BOUNDS[1]:
        return (
            f"{fps:.2f} FPS measured, {predicted:.2f} predicted (ratio {fps / predicted:.3f}, "
            f"allowed {RATIO_BOUNDS[0]} to {RATIO_BOUNDS[1]}): run heat thin again"
        )
    return ""


def _same_conditions(
    thinned: dict[str, Any], architecture: Architecture, target: Target, format: Format
) -> bool:
    """Say whether the thinning's prediction is about this network, runtime and thread count."""
    return (
        bool(thinned)
        and (thinned["runtime"], thinned["threads"]) == (RUNTIME_OF[format], target.threads)
        and thinned["precision"] == target.precision == WRITTEN
        and thinned["model"] == target.detected.model
        and tuple(thinned["widths"]) == architecture.widths
        and tuple(thinned["blocks"]) == architecture.blocks
        and tuple(thinned["input_size"]) == architecture.input_size
    )


def load_network(workspace: Workspace) -> tuple[Detector, list[str], dict[str, Any] | None]:
    """Return the network to export, its class names, and how it was trained (None if not)."""
    path = workspace.train / "weights.safetensors"
    thinned = Architecture.load(workspace.architecture) if workspace.architecture.exists() else None
    if path.exists():
        info = read_info(path)
        architecture = Architecture.from_json(info.description, str(path))
        if thinned is None or thinned.with_(num_classes=architecture.num_classes) == architecture:
            network = Detector(architecture)
            load_weights(path, network)
            if info.epoch < info.epochs:
                print(
                    f"warning: training stands at epoch {info.epoch} of {info.epochs} "
                    "(heat train --resume goes on)",
                    file=sys.stderr,
                )
            facts = {"epoch": info.epoch, "epochs": info.epochs, **info.facts}
            facts.pop("history", None)
            return network.eval(), list(info.names), facts
        print(
            f"warning: {path} holds another architecture than the thinned one: not used",
            file=sys.stderr,
        )
    if thinned is None:
        workspace.need("thin", "heat thin --target-fps FPS")
    assert thinned is not None
    torch.manual_seed(0)
    names = [f"class_{index}" for index in range(thinned.num_classes)]
    return Detector(thinned).eval(), names, None


def _pictures(data: DetectionSet | None, folder: Path | None) -> list[Image]:
    if folder is not None:
        from deploy.detect import image_paths

        found = [read_image(path) for path in image_paths(folder)[:PARITY_IMAGES]]
    elif data is not None:
        records = data.records[:PARITY_IMAGES]
        found = [read_image(record.path, (record.height, record.width)) for record in records]
    else:
        rng = np.random.default_rng(0)
        found = [draw(rng)[0] for _ in range(PARITY_IMAGES)]
    pictures = [image for image in found if image is not None]
    if not pictures:
        raise DataError(f"none of the images in {folder or data} can be decoded")
    return pictures
