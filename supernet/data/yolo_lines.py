"""How the numbers of a YOLO label line are read: as a box, a polygon, keypoints, or ambiguous.

After the class, by their count: 4 are a box, 5 a box with its confidence or its track id, 6 a box
with both or a triangle, more a polygon, an odd count one with a confidence, or one that has lost a
number. An ambiguous line is decided by the other lines of the set; where they do not, it is broken.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SLACK = 0.01
"""Boxes may leave the image by this share."""

Box = tuple[float, float, float, float]
"""Centre x and y, width and height, as shares of the image."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """A line that may be read in one of two ways."""

    box: Box
    triangle: Box | None = None
    """The other reading of a tracked box; None for a polygon with a confidence, which may be one
    that has lost a number."""


class LineReader:
    """Reads the lines of a set, and collects evidence from the unambiguous ones for the others."""

    def __init__(self, keypoint_values: int) -> None:
        """Take how many numbers of keypoints follow a box; 0 for sets without keypoints."""
        self.keypoint_values = keypoint_values
        self._tracks = self._polygons = self._bare = False

    def read(self, values: Sequence[float]) -> Box | Doubt:
        """Return the box of the numbers after the class; raise `ValueError` where none is."""
        if len(values) < 4:
            raise ValueError(values)
        x, y, w, h, *rest = values
        if self.keypoint_values:
            for points in (0, self.keypoint_values):
                if len(rest) >= points and _is_tail(rest[points:]):
                    return x, y, w, h
            raise ValueError(values)
        if len(rest) < 2:
            self._bare |= not rest
            if not _is_tail(rest):
                raise ValueError(values)
            return x, y, w, h
        if len(rest) == 2 and _is_tail(rest):
            if rest[1] > 1:  # no share of the image
                self._tracks = True
                return x, y, w, h
            if _is_inside(x, y, w, h):
                return Doubt((x, y, w, h), _around(values))
        if len(values) % 2:
            if not 0 <= values[-1] <= 1:
                raise ValueError(values)
            return Doubt(_around(values[:-1]))
        self._bare = self._polygons = True
        return _around(values)

    def settle(self, doubt: Doubt) -> Box | None:
        """Return, after all lines of the set, the box of an ambiguous line; None if it stays so."""
        if doubt.triangle is None:
            return None if self._bare else doubt.box
        if self._tracks == self._polygons:
            return None
        return doubt.box if self._tracks else doubt.triangle


def _is_tail(values: Sequence[float]) -> bool:
    """Return whether numbers can be a confidence, a track id, or both."""
    if len(values) == 2:
        return 0 <= values[0] <= 1 and _is_count(values[1])
    return not values or (len(values) == 1 and (0 <= values[0] <= 1 or _is_count(values[0])))


def _is_count(value: float) -> bool:
    return value >= 0 and value.is_integer()


def _is_inside(x: float, y: float, w: float, h: float) -> bool:
    low, high = -SLACK, 1 + SLACK
    sides = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    return w > 0 and h > 0 and all(low <= side <= high for side in sides)


def _around(values: Sequence[float]) -> Box:
    """Return the box around the points of a polygon."""
    xs, ys = values[::2], values[1::2]
    low, high = (min(xs), min(ys)), (max(xs), max(ys))
    return (low[0] + high[0]) / 2, (low[1] + high[1]) / 2, high[0] - low[0], high[1] - low[1]


def label_line(label: int, box_xyxy: Iterable[float], size_hw: tuple[int, int]) -> str:
    """Return the line of a box, given by its corners in pixels."""
    height, width = size_hw
    x0, y0, x1, y1 = (float(side) for side in box_xyxy)
    values = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height
    return f"{label} " + " ".join(f"{value:.6f}" for value in values) + "\n"
