"""Sets that are annotated on the stored pixels of images whose EXIF orientation turns them.

`read_image` follows each annotation's size, so such a set is trained on as it was annotated; what
states no size, as YOLO, and whoever detects on the files sees them turned.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from .detection_set import Boxes, Crowd, DetectionSet, Record
from .image_files import TURNED, Oriented, oriented_size

_TURNS: Mapping[int, Callable[[Boxes, Boxes, int, int], tuple[Boxes, Boxes]]] = {
    2: lambda x, y, h, w: (w - x, y),
    3: lambda x, y, h, w: (w - x, h - y),
    4: lambda x, y, h, w: (x, h - y),
    5: lambda x, y, h, w: (y, x),
    6: lambda x, y, h, w: (h - y, x),
    7: lambda x, y, h, w: (h - y, w - x),
    8: lambda x, y, h, w: (y, w - x),
}
"""Where a stored point lies after rotation, by EXIF orientation (CIPA DC-008, table 6)."""


def is_stored(record: Record, found: Oriented | None) -> bool:
    """Return whether the size of an annotation is that before its image's rotation.

    Orientations that keep the size, and square images, do not show it.
    """
    if found is None or found.orientation not in TURNED:
        return False
    return found.stored_hw == (record.height, record.width) != found.stored_hw[::-1]


def upright(splits: Sequence[DetectionSet]) -> tuple[list[DetectionSet], int]:
    """Return a set's splits with all boxes on turned images, and how many were on stored ones.

    Where the sizes show that of any image, those whose sizes do not show it are taken to be
    annotated in the same way.
    """
    headers = {
        record.path: oriented_size(record.path) for data in splits for record in data.records
    }
    stored = sum(
        is_stored(record, headers[record.path]) for data in splits for record in data.records
    )
    if not stored:
        return list(splits), 0
    turned = [
        data.of([_turned(record, headers[record.path]) for record in data.records])
        for data in splits
    ]
    return turned, stored


def _turned(record: Record, found: Oriented | None) -> Record:
    stated = (record.height, record.width)
    if found is None or found.orientation not in _TURNS or found.stored_hw != stated:
        return record
    turned_hw = stated[::-1] if found.orientation in TURNED else stated

    def turn(boxes_xyxy: Boxes) -> Boxes:
        x_2N, y_2N = boxes_xyxy.T[0::2], boxes_xyxy.T[1::2]
        x_2N, y_2N = _TURNS[found.orientation](x_2N, y_2N, *stated)
        corners = (x_2N.min(0), y_2N.min(0), x_2N.max(0), y_2N.max(0))
        return np.stack(corners, axis=1).astype(np.float32)

    boxes = turn(record.boxes_xyxy) if len(record.labels) else record.boxes_xyxy
    crowds = tuple(
        Crowd(tuple(map(float, turn(np.array([crowd.box_xyxy]))[0])), crowd.label, crowd.area_px)
        for crowd in record.crowds
    )
    height, width = turned_hw
    return replace(record, height=height, width=width, boxes_xyxy=boxes, crowds=crowds)
