"""Exports a detector as a bundle, once it is checked to compute what torch computes."""

import datetime
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from supernet.atomic import write_text
from supernet.counting import count_macs, count_params
from supernet.errors import UserError
from supernet.heatdetr.quantization import Quantization
from supernet.letterbox import PAD_RGB, Image, letterbox
from supernet.network import Network

from .edge.bench import Speed, measure_speed
from .edge.card import Card, Facts, InputFacts
from .edge.detect import CARD, CARD_FORMAT, file_hash
from .edge.session import runtime_version
from .form import Form, decode_rule
from .gate import check_ap, check_batch, check_executed, check_parity
from .judge import Judge
from .parity import MIN_IOU, Parity
from .standalone import detect_script
from .whole_folder import replacing_folder


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished bundle."""

    folder: Path
    card: Card
    parity: Parity
    speed: Speed | None
    """None where this machine cannot execute it."""


def export_bundle(
    network: Network,
    folder: Path,
    form: Form,
    *,
    names: Sequence[str],
    images: Sequence[Image],
    facts: Facts,
    plan: Quantization | None = None,
    judge: Judge | None = None,
    max_ap_drop: float = 1.0,
    measure: Callable[[Path], Speed] | None = None,
) -> Exported:
    """Write `folder` (model, card, detect.py) after checking it against torch on `images`.

    `facts` go into the card as they are: training, predictions, device. Scores are calibrated where
    the network's `decode` has a calibration. `plan` is the INT8 quantization, `judge` scores the
    artefact on labelled images, `measure` times the model file; without it bursts of runs on the
    first image are timed. The folder appears whole or not at all. Raises `PromiseError` when the
    artefact does not agree with torch, loses more than `max_ap_drop` points, or is executed in
    another precision.
    """
    if not images:
        raise UserError("export needs at least one image to compare with torch")
    if form.precision == "int8" and plan is None and form.nncf is None:
        raise UserError("INT8 is calibrated on images: give --data or --images")
    version = runtime_version(form.runtime)
    architecture = network.architecture
    metadata = {
        "names": json.dumps(list(names)),
        "input": json.dumps(_input_facts(architecture.input_size)),
        "architecture": architecture.to_json(),
    }
    with replacing_folder(folder) as scratch, ExitStack() as opened:
        graph = form.graph(network, plan, metadata)
        model, typed = form.write(graph, scratch, metadata)
        session = raw_session = opened.enter_context(form.open(graph, model))
        if not form.raw:
            raw_session = opened.enter_context(form.open(form.graph(network, plan, raw=True)))
        find, size = form.finder(session, network), architecture.input_size
        parity = check_parity(network, form, find, raw_session, images, plan)
        if form.dynamic_batch:
            check_batch(session, images, size)
        executed = check_executed(form, model, session, typed, images[0], size, plan)
        judged = check_ap(network, find, judge, max_ap_drop, form)
        speed = None
        if form.runs_here and measure is not None:
            speed = measure(model)
        elif form.runs_here:
            speed = measure_speed(session, {"image": letterbox(images[0], size)[0][None]})
        (scratch / "detect.py").write_text(detect_script(form.format), encoding="utf-8")
        card: Card = {
            "format": CARD_FORMAT,
            "model": model.name,
            "model_format": form.format,
            "runtime": form.runtime,
            "runtime_version": version,
            "precision": form.precision,
            "executed": executed,
            "threads": form.deployed_threads or form.threads,
            "measured_threads": form.threads,
            "names": list(names),
            "input": _input_facts(architecture.input_size),
            "raw": form.raw,
            "padded": form.padded,
            "dynamic_batch": form.dynamic_batch,
            "engine": form.engine.sidecar() if form.engine else None,
            "outputs": RAW_OUTPUTS if form.raw else PADDED if form.padded else OUTPUTS,
            "decode": decode_rule(network),
            "architecture": architecture.to_dict(),
            "macs": count_macs(architecture).total,
            "params": count_params(architecture),
            "parity": asdict(parity)
            | {"min_iou": MIN_IOU, "against": "torch", "in": form.checked_in},
            **judged,
            "in_floating_point": sorted(plan.kept) if plan else None,
            "measured_ms": round(speed.ms, 4) if speed else None,
            "measured_fps": round(speed.fps, 3) if speed else None,
            "p50_ms": round(speed.p50_ms, 4) if speed else None,
            "p95_ms": round(speed.p95_ms, 4) if speed else None,
            "date": datetime.date.today().isoformat(),
            **facts,
            "files": {path.name: file_hash(path) for path in sorted(scratch.iterdir())},
        }
        write_card(scratch, card)
    return Exported(folder, card, parity, speed)


OUTPUTS = {
    "boxes_xyxy_px": "float32 [n, 4], n <= 100, pixels of the network input",
    "scores": "float32 [n]",
    "labels": "int64 [n], index into names",
}
PADDED = {
    "boxes_xyxy_px": "float32 [images, 100, 4], pixels of the network input",
    "scores": "float32 [images, 100], 0 where nothing is",
    "labels": "int64 [images, 100], index into names",
}
RAW_OUTPUTS = {
    "scores": "float32 [anchors per cell, classes, cells], probabilities",
    "deltas": "float32 [anchors per cell, 4 (dx, dy, dw, dh), cells]",
}


def _input_facts(size: tuple[int, int]) -> InputFacts:
    return {
        "height": size[0],
        "width": size[1],
        "layout": "NHWC",
        "dtype": "uint8",
        "colour": "RGB",
        "resize": "keep ratio, pad right and bottom",
        "pad_rgb": list(PAD_RGB),
        "normalisation": "in the graph",
    }


def write_card(folder: Path, card: Card) -> None:
    """Write `card.json` atomically."""
    write_text(folder / CARD, json.dumps(card, indent=1) + "\n")
