"""What an export is judged on: images for the comparison, labelled ones for AP, and INT8's plan."""

import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from deploy.form import Form
from deploy.gate import artefact_detect, torch_detect
from deploy.judge import Judge
from deploy.quantize import quantize
from supernet.data.coco_file import ResultRow
from supernet.data.detection_set import DetectionSet, evenly
from supernet.data.shapes import draw
from supernet.errors import DataError
from supernet.graph.style import QUANTIZES_OUTPUTS
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.quantization import Quantization
from supernet.letterbox import Image, read_image
from supernet.network import Network
from supernet.train.threads import sparing

PARITY_IMAGES = 20
BATCH = 8
JUDGED_IMAGES = 200
"""Labelled images on which torch and the artefact are scored."""


def judge_of(data: DetectionSet, names: list[str], network: Network) -> Judge | None:
    """Return what scores a network's exports on some labelled images; None without boxes.

    Where there is no box, AP is none whatever is detected.
    """
    data = data.numbered_as(names)
    part = data.of(evenly(data.records, JUDGED_IMAGES))
    if not any(len(record.labels) for record in part.records):
        print(
            f"warning: no object in {len(part.records)} image(s) of {data.annotation_path}: "
            "AP none, it is not compared",
            file=sys.stderr,
        )
        return None
    with sparing():
        return Judge.of(torch_detect(network), part)


def quantized(
    network: Detector,
    form: Form,
    samples: Sequence[Image],
    judge: Judge | None,
    max_ap_drop: float,
) -> Quantization:
    """Return how a network is quantized without losing more AP than it may.

    `samples` have the size of the network's input. Without a judge every convolution is quantized,
    and what that loses is not known.
    """
    pixels = torch.from_numpy(np.stack(samples))
    batches = [pixels[i : i + BATCH] for i in range(0, len(pixels), BATCH)]
    outputs = form.runtime in QUANTIZES_OUTPUTS
    exact = judge.exact_ap if judge else 0.0
    if judge is None or exact == 0.0:
        why = "no labelled data or no training" if judge is None else "torch itself has AP 0"
        print(f"warning: {why}: what INT8 loses is not known (--data)", file=sys.stderr)
        return quantize(network, batches, None, max_ap_drop, outputs=outputs)[0]

    def lost(plan: Quantization) -> float:
        return exact - judge.ap(quantized_rows(network, form, plan, judge))

    return quantize(network, batches, lost, max_ap_drop, outputs=outputs)[0]


def quantized_rows(
    network: Network, form: Form, plan: Quantization | None, judge: Judge
) -> list[ResultRow]:
    """Return what a network detects once it is quantized, scores as its `decode` gives them."""
    graph = form.graph(network, plan)
    with (
        tempfile.TemporaryDirectory() as folder,
        form.open(graph, form.write(graph, Path(folder))[0]) as session,
    ):
        return judge.found(artefact_detect(network, form.finder(session, network)))


def pixels_digest(images: Sequence[Image]) -> str:
    """Return a hash of what images show: other calibration images make other INT8 networks."""
    found = hashlib.sha256()
    for image in images:
        found.update(json.dumps(image.shape).encode())
        found.update(np.ascontiguousarray(image).tobytes())
    return found.hexdigest()


def images_of(
    data: DetectionSet | None, folder: Path | None, count: int = PARITY_IMAGES
) -> list[Image]:
    """Return the user's images, the data's, or synthetic shapes, in that order of preference."""
    if folder is not None:
        from deploy.edge.sources import image_paths

        found = [read_image(path) for path in evenly(image_paths(folder), count)]
    elif data is not None:
        records = evenly(data.records, count)
        found = [read_image(record.path, (record.height, record.width)) for record in records]
    else:
        rng = np.random.default_rng(0)
        found = [draw(rng).pixels for _ in range(count)]
    images = [image for image in found if image is not None]
    if not images:
        where = folder or (data.root if data is not None else "")
        raise DataError(f"none of {len(found)} images in {where} can be decoded")
    return images
