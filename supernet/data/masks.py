"""Boxes of masks in COCO's run-length encoding, for annotations that state no `bbox`.

Runs of zeros and ones take turns, zeros first, down the columns from left to right. They are a list
of lengths, or a text in pycocotools' own coding. Decoded here, and not there: its C code reads past
the end of a text that was cut short.
"""

from collections.abc import Iterable, Mapping
from itertools import accumulate
from operator import index

BITS = 5
"""Payload bits of a character; the sixth is set where another one follows."""
MORE, SIGN = 1 << BITS, 1 << (BITS - 1)
FIRST = 48
"""Code of the character whose bits are all 0."""


def mask_box(mask: Mapping[str, object]) -> tuple[float, float, float, float]:
    """Return x, y, width and height of a mask, zeros for an empty one.

    `mask` is as the annotation file has it, unchecked: raises `ValueError`, `KeyError` or
    `TypeError` for other values, and for runs that are negative or do not add up to its size.
    """
    height, width = mask_size(mask)
    counts = mask["counts"]
    runs = decoded(counts) if isinstance(counts, str) else _integers(counts)
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError(mask["size"])
    low, high = [width, height], [0, 0]
    ends = list(accumulate(runs))
    for start, end in zip(ends[::2], ends[1::2], strict=False):
        if start == end:
            continue
        (first, top), (last, bottom) = divmod(start, height), divmod(end - 1, height)
        if first != last:  # it continues in the next column
            top, bottom = 0, height - 1
        low = [min(low[0], first), min(low[1], top)]
        high = [max(high[0], last + 1), max(high[1], bottom + 1)]
    if not high[0]:
        return 0.0, 0.0, 0.0, 0.0
    return float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])


def mask_size(mask: Mapping[str, object]) -> tuple[int, int]:
    """Return height and width of a mask in pixels; raises as `mask_box`."""
    height, width = _integers(mask["size"])
    if height < 1 or width < 1:
        raise ValueError(mask["size"])
    return height, width


def _integers(values: object) -> list[int]:
    if not isinstance(values, Iterable):
        raise TypeError(values)
    return [index(value) for value in values]


def decoded(text: str) -> list[int]:
    """Return the runs of a text; raise `ValueError` where it ends in the middle of a number.

    From the fourth on, each is stored as its difference to the last but one.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - FIRST
        if not 0 <= bits < 2 * MORE:
            raise ValueError(character)
        value |= (bits & (MORE - 1)) << shift
        shift += BITS
        if bits & MORE:
            continue
        if bits & SIGN:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError(text[-1])
    return runs
