"""Keeps a frame rate on a bad day: of several networks a faster one takes over while it must.

A ladder is a folder of bundles, its rungs, of one training and for several frame rates. When a
machine throttles, or others need it, frames take longer than the rate allows, and the next faster
rung takes over; when there is room again, the next more accurate one comes back.

Needs numpy and OpenCV only; every bundle's `detect.py` carries this file's text.
"""

import json
import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypedDict

import numpy as np

from supernet.errors import BundleError, UserError, wrong_format

from .card import Card, check_inside
from .detect import Bundle
from .found import Found
from .records import Held, Switch

LADDER_FORMAT = 1
"""History of `ladder.json`: 1, the first."""
LADDER_FILE = "ladder.json"

LATE_FRAMES = 2
"""Frames in a row that take longer than the rate allows, after which a faster rung takes over."""
ROOM = 0.85
"""Share of a frame's time that the more accurate rung must be expected to need at most."""
RECENT = 30
"""Frames whose median says what a rung needs now."""
FIRST_WAIT_S = 1.0
"""Seconds on a rung before a more accurate one is tried."""
MOST_WAIT_S = 60.0
SOON_S = 5.0
"""A rung that is left so soon after it came back waits twice as long for its next turn."""
MOST_SWITCHES = 100
"""Switches that are listed in the result."""


class Rung(TypedDict):
    """An entry of `ladder.json`."""

    bundle: str
    """Name of its folder."""
    target_fps: float


@dataclass(slots=True)
class Hold:
    """Chooses the rung for the next frame by what the last ones took."""

    budget_ms: float
    """Time that the frame rate leaves for a frame."""
    expected_ms: list[float]
    """What each rung takes when nothing disturbs it, the most accurate rung first."""
    rung: int = 0
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    _late: int = 0
    _since_s: float = 0.0
    _wait_s: float = FIRST_WAIT_S
    _rose: bool = False

    def take(self, ms: float, now_s: float) -> bool:
        """Note what a frame took, at a time in seconds; return whether another rung is next."""
        self._recent.append(ms)
        self._late = self._late + 1 if ms > self.budget_ms else 0
        stayed_s = now_s - self._since_s
        if self._late >= LATE_FRAMES and self.rung + 1 < len(self.expected_ms):
            if self._rose:
                again = min(MOST_WAIT_S, 2 * self._wait_s)
                self._wait_s = again if stayed_s < SOON_S else FIRST_WAIT_S
            return self._go(self.rung + 1, now_s)
        if self.rung and stayed_s >= self._wait_s and len(self._recent) == RECENT:
            slower = self.expected_ms[self.rung - 1] / self.expected_ms[self.rung]
            if statistics.median(self._recent) * slower < ROOM * self.budget_ms:
                return self._go(self.rung - 1, now_s)
        return False

    def _go(self, rung: int, now_s: float) -> bool:
        self._rose = rung < self.rung
        self.rung, self._since_s, self._late = rung, now_s, 0
        self._recent.clear()
        return True


class Ladder:
    """Several loaded bundles, one of which finds the objects of each image."""

    def __init__(
        self, folder: Path, threads: int | None = None, hold_fps: float | None = None
    ) -> None:
        """Load all rungs; without `hold_fps` the most accurate one does all the work."""
        self.hold_fps = hold_fps
        self.rungs: list[Bundle] = []
        try:
            for rung in read_ladder(folder):
                self.rungs.append(Bundle(folder / rung["bundle"], threads))
            if any(rung.names != self.rungs[0].names for rung in self.rungs):
                raise BundleError(f"{folder}: its networks have different classes: export it again")
        except BaseException:
            self.close()
            raise
        self.card: Card = self.rungs[0].card
        """That of the most accurate network, whose thresholds are those of all."""
        self.names, self.input_hw = self.rungs[0].names, self.rungs[0].input_hw
        expected = [_expected_ms(rung.card) for rung in self.rungs]
        budget_ms = 1000.0 / hold_fps if hold_fps is not None else float("inf")
        fits = [index for index, ms in enumerate(expected) if ms <= budget_ms]
        first = fits[0] if fits else len(expected) - 1
        self._hold = Hold(budget_ms, expected, first, _since_s=time.monotonic())
        self.frames = [0] * len(self.rungs)
        self.switches: list[Switch] = []
        self._switched = 0
        for bundle in self.rungs:  # the first run of a session takes longer
            bundle.detect(np.zeros((*bundle.input_hw, 3), dtype=np.uint8), score=0.0)

    def detect(self, image: Any, score: float | None = None) -> Found:
        """Find objects by the rung whose turn it is; see `Bundle.detect`."""
        rung = self._hold.rung
        found = self.rungs[rung].detect(image, 0.0 if score is None else score)
        limits = self.rungs[0].limits
        if score is None and limits is not None:
            found = found.above(limits)
        took_ms = found.preprocess_ms + found.latency_ms + found.postprocess_ms
        if self._hold.take(took_ms, time.monotonic()):
            self._switched += 1
            if len(self.switches) < MOST_SWITCHES:
                self.switches.append(
                    {
                        "frame": sum(self.frames),
                        "rung": self._name(self._hold.rung),
                        "before_ms": round(took_ms, 3),
                    }
                )
        self.frames[rung] += 1
        return found

    def held(self) -> Held | None:
        """Return how often each network had its turn since this was last asked.

        None where no rate is to be held.
        """
        if self.hold_fps is None:
            return None
        held: Held = {
            "hold_fps": self.hold_fps,
            "frames": {self._name(index): count for index, count in enumerate(self.frames)},
            "switched": self._switched,
            "switches": self.switches,
        }
        self.frames, self.switches, self._switched = [0] * len(self.rungs), [], 0
        return held

    def _name(self, rung: int) -> str:
        return self.rungs[rung].folder.name

    def close(self) -> None:
        """Release all models."""
        for rung in self.rungs:
            rung.close()

    def __enter__(self) -> Self:
        """Return the ladder."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close it."""
        self.close()


def read_ladder(folder: Path) -> list[Rung]:
    """Return the rungs of a ladder, the most accurate first; refuse folders outside of it."""
    path = folder / LADDER_FILE
    try:
        ladder = json.loads(path.read_text(encoding="utf-8"))
        version = ladder["format"]
        if version != LADDER_FORMAT:
            raise BundleError(wrong_format(path, version, [LADDER_FORMAT], "export again"))
        rungs: list[Rung] = [
            {"bundle": str(rung["bundle"]), "target_fps": float(rung["target_fps"])}
            for rung in ladder["rungs"]
        ]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read ({error}): export again") from None
    if not all(0 < rung["target_fps"] < float("inf") for rung in rungs):
        raise BundleError(f"{path}: frame rates must be positive numbers: export again")
    if not rungs or any(Path(rung["bundle"]).name != rung["bundle"] for rung in rungs):
        raise BundleError(f"{path}: the names of folders beside it are needed: export again")
    for rung in rungs:
        check_inside(rung["bundle"], path)
    return sorted(rungs, key=lambda rung: rung["target_fps"])


def open_finder(
    folder: Path, threads: int | None = None, hold_fps: float | None = None
) -> Bundle | Ladder:
    """Load a bundle or a ladder, to hold a frame rate where one is given."""
    if hold_fps is not None and not 0 < hold_fps < float("inf"):
        raise UserError(f"--hold-fps {hold_fps:g}: a positive number is needed")
    if (folder / LADDER_FILE).exists():
        return Ladder(folder, threads, hold_fps)
    if hold_fps is not None:
        raise UserError(
            f"--hold-fps {hold_fps:g}: {folder} holds one network: heat export --ladder 60,30,15 "
            "makes a folder of several"
        )
    return Bundle(folder, threads)


def _expected_ms(card: Card) -> float:
    """Return what a frame takes by the card: at the median, or sustained where that is unknown."""
    value = card.get("p50_ms") or card.get("measured_ms")
    if not isinstance(value, int | float) or not value > 0:
        raise BundleError("a network of the ladder was never timed here: export it again")
    return float(value)
