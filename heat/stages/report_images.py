"""Images of `heat report`: what is labelled beside what was detected."""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from deploy.edge.detect import Bundle, is_bundle
from deploy.edge.score_limits import score_limits
from supernet.data.detection_set import DetectionSet
from supernet.letterbox import Image, read_image

SAMPLES = 4
SIDE_PX = 520
"""Longest side of an image on the page."""
QUALITY = 80
COLOURS = (
    (214, 39, 40), (31, 119, 180), (44, 160, 44), (255, 127, 14), (148, 103, 189), (23, 190, 207),
    (227, 119, 194), (188, 189, 34),
)  # fmt: skip
"""RGB of classes, again from the first where there are more."""

Box = tuple[float, float, float, float, str]
"""xyxy in pixels of the image, and the class."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An image twice, JPEG in base64."""

    name: str
    truth: str
    num_truth: int
    found: str
    num_found: int


@dataclass(frozen=True, slots=True)
class Samples:
    """Images with their boxes, and the colours of the classes."""

    pairs: list[Pair]
    legend: list[tuple[str, str]]
    """Class and CSS colour."""
    split: str


def detected_samples(folders: Sequence[Path], data: DetectionSet | None) -> Samples | None:
    """Detect in the first images of a split with the first bundle; None without either."""
    ready = [folder for folder in folders if is_bundle(folder)]
    if data is None or not ready:
        return None
    pairs: list[Pair] = []
    with Bundle(ready[0]) as bundle:
        names = list(dict.fromkeys([*bundle.names, *data.names]))
        limits = score_limits(bundle.card, bundle.names)
        for record in data.records[:SAMPLES]:
            image = read_image(record.path, (record.height, record.width))
            if image is None:
                continue
            found = bundle.detect(image, score=0.0).once(limits).above(limits)
            truth = _boxes(record.boxes_xyxy, record.labels, data.names)
            boxes = _boxes(found.boxes_xyxy_px, found.labels, bundle.names)
            pairs.append(
                Pair(
                    record.path.name,
                    _drawn(image, truth, names),
                    len(truth),
                    _drawn(image, boxes, names),
                    len(boxes),
                )
            )
    legend = [(name, f"rgb{_colour(names, name)}") for name in names[: len(COLOURS)]]
    return Samples(pairs, legend, data.split) if pairs else None


def as_jpeg(path: Path) -> str:
    """Return a JPEG file in base64."""
    return base64.b64encode(path.read_bytes()).decode()


def _boxes(
    boxes: Iterable[Iterable[float]], labels: Iterable[int], names: Sequence[str]
) -> list[Box]:
    found = []
    for box, label in zip(boxes, labels, strict=True):
        x0, y0, x1, y1 = (float(side) for side in box)
        found.append((x0, y0, x1, y1, names[int(label)]))
    return found


def _colour(names: Sequence[str], name: str) -> tuple[int, int, int]:
    return COLOURS[names.index(name) % len(COLOURS)]


def _drawn(image: Image, boxes: Sequence[Box], names: Sequence[str]) -> str:
    height, width = image.shape[:2]
    scale = min(1.0, SIDE_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    for x0, y0, x1, y1, name in boxes:
        corners = [round(value * scale) for value in (x0, y0, x1, y1)]
        cv2.rectangle(canvas, corners[:2], corners[2:], _colour(names, name), 2)
    ok, encoded = cv2.imencode(".jpg", canvas[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert ok
    return base64.b64encode(encoded.tobytes()).decode()
