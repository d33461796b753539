"""Finds small objects in large images: in overlapping tiles of the network's input size.

Every bundle's `detect.py` carries this file's text.
"""

from dataclasses import replace

import numpy as np

from supernet.letterbox import Image

from .found import Finder, Found
from .postprocess import suppressed

OVERLAP = 0.25
"""Share of a tile that its neighbour shares; a smaller object is whole in one of them."""
EDGE_PX = 2.0
"""A box this close to a tile's inner border is taken as cut off by it."""


def tile_starts(side: int, tile: int) -> list[int]:
    """Return where tiles begin along a side, evenly spread, overlapping by a quarter at least."""
    if side <= tile:
        return [0]
    count = int(np.ceil((side - tile) / (tile * (1 - OVERLAP)))) + 1
    return [round(start) for start in np.linspace(0, side - tile, count)]


def detect_tiled(bundle: Finder, image: Image, iou: float) -> Found:
    """Return the objects of the whole image and of its tiles, whatever their score, each once.

    A tile's box that touches an inner border is dropped: the object is whole in the neighbour or,
    where it is larger than the overlap, in the whole image.
    """
    whole = bundle.detect(image, score=0.0)
    height, width = image.shape[:2]
    tile_h, tile_w = bundle.input_hw
    if height <= tile_h and width <= tile_w:
        return whole
    parts = [whole]
    for top in tile_starts(height, tile_h):
        for left in tile_starts(width, tile_w):
            bottom, right = min(top + tile_h, height), min(left + tile_w, width)
            part = np.ascontiguousarray(image[top:bottom, left:right])
            found = bundle.detect(part, score=0.0)
            boxes = found.boxes_xyxy_px + np.array([left, top] * 2, dtype=np.float32)
            inside = np.ones(len(boxes), dtype=bool)
            for axis, cut, open_side in (
                (0, left, left > 0), (1, top, top > 0),
                (2, right, right < width), (3, bottom, bottom < height),
            ):  # fmt: skip
                if open_side:
                    inside &= np.abs(boxes[:, axis] - cut) > EDGE_PX
            parts.append(replace(found, boxes_xyxy_px=boxes).at(inside))
    merged = replace(
        whole,
        boxes_xyxy_px=np.concatenate([part.boxes_xyxy_px for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        latency_ms=sum(part.latency_ms for part in parts),
        preprocess_ms=sum(part.preprocess_ms for part in parts),
        postprocess_ms=sum(part.postprocess_ms for part in parts),
    )
    rows = suppressed(merged.boxes_xyxy_px, merged.scores, iou, merged.labels)
    return merged.at(rows)
