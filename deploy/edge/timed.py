"""Whether a bundle can run on this machine as it was timed.

Every bundle's `detect.py` carries this file's text.
"""

import sys
from contextlib import suppress

from supernet.errors import HeatError

from .card import Card
from .cpu import core_count, cpu_model
from .runtimes import RUNTIMES
from .session import runtime_version


def warn_if_timed_otherwise(card: Card) -> None:
    """Warn where this machine cannot run a bundle as it was timed: its frame rate is another's."""
    if card.get("measured_fps") is None:
        return
    differences = []
    timed_on = card.get("device_model")
    if card["runtime"] in RUNTIMES and timed_on is not None and timed_on != cpu_model():
        differences.append(f"{cpu_model()} for {timed_on}")
    with suppress(HeatError):  # a runtime that states no version
        version = runtime_version(card["runtime"])
        if version != card.get("runtime_version", version):
            differences.append(f"{card['runtime']} {version} for {card['runtime_version']}")
    if core_count() < card["threads"]:
        differences.append(f"{core_count()} core(s) for {card['threads']} threads")
    if differences:
        print(
            f"warning: here is {', '.join(differences)}: the card's {card['measured_fps']:g} "
            "FPS were not measured so (heat bench measures)",
            file=sys.stderr,
        )
