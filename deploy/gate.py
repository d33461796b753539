"""Checks of an artefact before its bundle appears: parity with torch, AP, executed precision."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from supernet.data.evaluate import Detect, Found
from supernet.errors import PromiseError
from supernet.heatdetr.quantization import Quantization
from supernet.letterbox import Image, boxes_to_image, letterbox
from supernet.network import Network

from .diverge import first_divergence
from .edge.card import AccuracyCheck, Judged
from .edge.executed import dominant, executed_precision
from .edge.postprocess import Find
from .edge.session import Session
from .form import Form
from .judge import Judge
from .parity import Parity, compare

MIN_EXECUTED = 0.75
"""Share of the quantised convolutions that the runtime must execute in INT8."""


def check_parity(
    network: Network,
    form: Form,
    find: Find,
    raw_session: Session,
    images: Sequence[Image],
    plan: Quantization | None,
) -> Parity:
    """Compare with torch on every image; a failure names the first part that differs."""
    parity = compare(network, find, raw_session, images, form.precision)
    if parity.passed:
        return parity
    if parity.not_finite:
        raise PromiseError(
            f"the {form.format} model in {form.precision} gives NaN or infinity on "
            f"{parity.not_finite} of {parity.images} images; nothing was written; "
            f"{_where(network, form, images, plan)}: export --precision f32, or train again where "
            "torch gives them too"
        )
    allowed = parity.allowed
    raise PromiseError(
        f"the {form.format} model in {form.precision} disagrees with torch on {parity.images} "
        f"images: {parity.unmatched} of {parity.matched + parity.unmatched} detections without "
        f"partner (allowed {allowed.unmatched:.0%}), scores differ by {parity.worst_score:.2g} "
        f"(allowed {allowed.score:g}), boxes by {parity.worst_box_px:.2g} px (allowed "
        f"{allowed.raw_box_px:g}); nothing was written; {_where(network, form, images, plan)}"
    )


def _where(network: Network, form: Form, images: Sequence[Image], plan: Quantization | None) -> str:
    if network.heatdetr is None:
        return "compare their ONNX graphs part by part"
    found = first_divergence(
        network.heatdetr,
        images[0],
        form.checked_in,
        form.threads,
        written=form.written,
        executed=form.precision,
        ranges=plan,
    )
    if found is None:
        return "no part before the head differs"
    return f"the first part that differs is {found.place} (by {found.error:.1%})"


def check_batch(session: Session, images: Sequence[Image], size: tuple[int, int]) -> None:
    """Fail where images in a batch give other results than one at a time."""
    pixels = [letterbox(image, size)[0][None] for image in (images[0], images[-1])]
    together = session.run({"image": np.concatenate(pixels)})
    for index, one in enumerate(pixels):
        alone = session.run({"image": one})
        for both, single in zip(together, alone, strict=True):
            if not np.allclose(both[index], single[0], rtol=1e-3, atol=1e-2):
                raise PromiseError(
                    f"image {index + 1} of a batch gives something else than alone (by "
                    f"{np.abs(both[index] - single[0]).max():.2g}); nothing was written"
                )


def check_executed(
    form: Form,
    model: Path,
    session: Session,
    typed: dict[str, int],
    image: Image,
    size: tuple[int, int],
    plan: Quantization | None,
) -> dict[str, int]:
    """Return what the runtime executes, or fail where it is not what was asked for.

    It is read back from the runtime. For an engine that cannot run here, the types of its layers
    are returned: a strongly typed engine executes these.
    """
    feeds = {"image": letterbox(image, size)[0][None]}
    if not form.runs_here:
        executed = typed
    elif form.engine is not None:
        executed = session.executed(feeds)  # type: ignore[attr-defined]
    else:
        executed = executed_precision(form.runtime, model, form.threads, form.precision, feeds)
    listed = ", ".join(f"{count} in {name}" for name, count in executed.items())
    if plan is not None:
        wanted = sum(plan.limit(name) is not None for name in plan.ranges)
        if executed.get("int8", 0) < MIN_EXECUTED * wanted:
            raise PromiseError(
                f"{wanted} convolutions were written in int8, {form.runtime} executes {listed}: "
                "export another --precision or --format; nothing was written"
            )
    elif dominant(executed) != form.precision:
        raise PromiseError(
            f"{form.precision} was asked for, {form.runtime} executes {listed} on this machine: "
            "export another --precision or --format; nothing was written"
        )
    return executed


def check_ap(
    network: Network, find: Find, judge: Judge | None, max_ap_drop: float, form: Form
) -> Judged:
    """Score the artefact on the images that torch was scored on; fail where too much is lost.

    Return the card's entries: both APs, and the thresholds of the classes, found from the same
    detections.
    """
    if judge is None:
        return {"accuracy_check": None}
    rows = judge.found(artefact_detect(network, find))
    exact, ours = judge.exact_ap, judge.ap(rows)
    if not exact - ours <= max_ap_drop:
        raise PromiseError(
            f"the {form.format} model in {form.precision} loses {exact - ours:.2f} points of AP "
            f"({exact:.2f} in torch, {ours:.2f} here; --max-ap-drop {max_ap_drop:g}); nothing was "
            "written"
        )
    accuracy: AccuracyCheck = {
        "torch_ap": round(exact, 3), "ap": round(ours, 3), "drop": round(exact - ours, 3),
        "images": len(judge.data.records),
    }  # fmt: skip
    return {"accuracy_check": accuracy, **judge.thresholds(rows)}


def torch_detect(network: Network) -> Detect:
    """Return a detector that runs torch."""
    folded = network.deployed()
    device = next(folded.parameters()).device

    @torch.no_grad()
    def detect(image: Image) -> Found:
        pixels, scale = letterbox(image, folded.architecture.input_size)
        found = folded.detect(torch.from_numpy(pixels)[None].to(device))[0]
        boxes = boxes_to_image(found.boxes_xyxy.cpu().numpy(), scale, image.shape[:2])
        return boxes, found.scores.cpu().numpy(), found.labels.cpu().numpy().astype(np.int64)

    return detect


def artefact_detect(network: Network, find: Find) -> Detect:
    """Return a detector that runs the artefact."""

    def detect(image: Image) -> Found:
        pixels, scale = letterbox(image, network.architecture.input_size)
        boxes, scores, labels = find({"image": pixels[None]})
        return boxes_to_image(boxes, scale, image.shape[:2]), scores, labels

    return detect
