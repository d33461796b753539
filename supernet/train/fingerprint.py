"""What must be the same for a training to go on: its settings, data, network and start."""

from collections.abc import Iterator
from typing import TypedDict

DIFFERENT = {
    "names": "other classes",
    "images": "another number of images",
    "data": "other images or annotations",
    "what": "another architecture",
    "start": "other weights to start from",
    "networks": "other networks trained together",
}
"""Words for the keys of `Fingerprint` and of its `start`, for messages."""
NAMED = 3
"""Most settings that a message names."""


class Fingerprint(TypedDict):
    """What must be the same for a run to be resumed."""

    config: dict[str, object]
    """JSON of the settings, without the number of epochs."""
    names: list[str]
    """Classes."""
    images: int
    data: str
    """Hash of the images and their annotations."""
    what: str
    """JSON of the architecture or the search space."""
    start: dict[str, str]
    """Hashes of the files that the network's weights come from."""


def differences(own: Fingerprint, kept: Fingerprint) -> str:
    """Say what differs between a run and the one whose state was kept; nothing where they match."""
    settings = list(_settings(own["config"], kept["config"]))
    if len(settings) > NAMED:
        settings[NAMED:] = [f"{len(settings) - NAMED} more settings"]
    others = [
        DIFFERENT[key]
        for key, value in own.items()
        if key not in ("config", "start") and kept.get(key) != value
    ]
    start, before = own["start"], kept["start"]
    starts = [
        DIFFERENT.get(name, DIFFERENT["start"])
        for name in sorted({*start, *before})
        if start.get(name) != before.get(name)
    ]
    return ", ".join(dict.fromkeys([*settings, *others, *starts]))


def _settings(own: dict[str, object], kept: dict[str, object], prefix: str = "") -> Iterator[str]:
    """Yield the settings that differ, each with both values."""
    for name in dict.fromkeys([*own, *kept]):
        value, before = own.get(name), kept.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            yield from _settings(value, before, f"{prefix}{name}.")
        elif value != before:
            yield f"{prefix}{name} {_short(value)} against {_short(before)}"


def _short(value: object) -> str:
    return "none" if value is None else "others" if isinstance(value, dict) else str(value)
