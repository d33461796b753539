"""Parses the size of the network input."""

import re

from ..errors import UserError

MAX_SIDE = 8192
"""Largest side in pixels; a larger one is taken for a typing error."""
SIDES = re.compile("([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


def parse_sides(text: str, option: str = "--input-size") -> tuple[int, int]:
    """Read `HxW`, such as `640x640`, of somebody's model: any sides."""
    sides = SIDES.fullmatch(text)
    if sides is None:
        raise UserError(f"{option} {text}: HxW is needed, 640x640 for instance")
    return int(sides[1]), int(sides[2])


def parse_size(text: str) -> tuple[int, int]:
    """Read `448`, or `HxW` such as `832x1344`, as (height, width) in pixels."""
    parts = text.lower().split("x")
    try:
        sides = [int(part) for part in parts]
    except ValueError:
        sides = []
    if len(sides) == 1:
        sides *= 2
    if len(sides) != 2 or any(side < 32 or side % 32 for side in sides):
        raise UserError(f"--input-size {text!r}: HxW in multiples of 32 needed, e.g. 448x448")
    if max(sides) > MAX_SIDE:
        raise UserError(f"--input-size {text!r}: at most {MAX_SIDE} pixels a side, e.g. 448x448")
    return sides[0], sides[1]
