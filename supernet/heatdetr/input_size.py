"""Parses the size of the network input."""

from ..errors import UserError

MAX_SIDE = 8192
"""Largest side in pixels; a larger one is taken for a typing error."""


def parse_sides(text: str, option: str = "--input-size") -> tuple[int, int]:
    """Read `HxW`, such as `640x640`, of somebody's model: any sides."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise UserError(f"{option} {text}: HxW is needed, 640x640 for instance")
    return int(height), int(width)


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
