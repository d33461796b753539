"""Files broken at random, but repeatably: changed JSON values, changed bytes, hostile contents."""

import json
import math
import random
from collections.abc import Iterator
from typing import Any

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, -0.0, 0.5, 1e308, math.inf, -math.inf,
    math.nan, "", " ", "a", "-1", "1e400", "\x00", "\ud800", "../..", "/etc/passwd", "x" * 5000,
    [], [None], [[]], [[[]]], {}, {"": None}, {"a": {"b": []}},
)  # fmt: skip
"""Values of other kinds than those expected."""

HOSTILE = (
    b"", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 6000, b"[[1]]", b'"a"', b"null",
    b'{"format": 1}', b'{"format": 1e999}', b"\xef\xbb\xbf{}", b"\x00" * 100, b"\xff" * 64, b"\n\n",
)  # fmt: skip
"""Whole contents of other kinds than those expected; the first cases of every file."""


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Return a file with one to three changes: of its JSON's values, or of its bytes."""
    for _ in range(chance.randint(1, 3)):
        data = (_json_changed if chance.random() < 0.6 else _bytes_changed)(data, chance)
    return data


def _json_changed(data: bytes, chance: random.Random) -> bytes:
    try:
        lines = data.decode("utf-8").splitlines() or [""]
        index = chance.randrange(len(lines)) if len(lines) > 1 else 0
        many = len(lines) > 1 and lines[0].startswith("{") and lines[0].endswith("}")
        value = json.loads(lines[index] if many else data)
    except (ValueError, RecursionError):
        return _bytes_changed(data, chance)
    places = list(_places(value))
    if not places:
        return json.dumps(chance.choice(STRANGE)).encode()
    holder, key = chance.choice(places)
    action = chance.random()
    if action < 0.2:
        del holder[key]
    elif action < 0.3 and isinstance(holder, list):
        holder.append(holder[key])
    else:
        holder[key] = chance.choice(STRANGE)
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        return data
    if many:
        lines[index] = text
        text = "\n".join(lines) + "\n"
    return text.encode("utf-8", "surrogatepass")


def _places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Yield every holder and key of a JSON value, at most some levels and items deep."""
    if depth > 6:
        return
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = list(value)[:40]
    elif isinstance(value, list):
        keys = list(range(min(len(value), 12)))
    for key in keys:
        yield value, key
        yield from _places(value[key], depth + 1)


def _bytes_changed(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    action = chance.randrange(7)
    if action == 0:
        return data[:at]
    if action == 1:
        return (
            data[:at]
            + bytes(chance.randrange(256) for _ in range(chance.randint(1, 8)))
            + data[at:]
        )
    if action == 2:
        return data[:at] + data[at + chance.randint(1, 16) :]
    if action == 3 and data:
        place = min(at, len(data) - 1)
        return data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :]
    if action == 4:
        piece = data[at : at + chance.randint(1, 64)]
        return data[:at] + piece * chance.randint(1, 20) + data[at:]
    if action == 5:
        word = chance.choice(
            [b"-1", b"99999999999999999999", b"nan", b"1e999", b"\xff\xfe", b"{", b"]"]
        )
        return data[:at] + word + data[at:]
    return b"" if chance.random() < 0.2 else data[at:]
