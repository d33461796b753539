"""Runs an exported bundle on images, without torch.

`heat detect` and `heat.load` use this file; every bundle's own `detect.py` carries its text.
"""

import hashlib
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np

from supernet.errors import BundleError, HeatError, UserError, wrong_format
from supernet.letterbox import boxes_to_image, letterbox

from .card import Card, check_card, waiting_of
from .cpu import core_count
from .found import Found
from .pixels import as_pixels
from .postprocess import Postprocess, unpad
from .runtimes import check_threads, open_session
from .score_limits import check_score, score_limits
from .session import Array

CARD_FORMAT = 1
"""History of `card.json`: 1, the first."""


CARD = "card.json"
"""The file that makes a folder a bundle."""


def is_bundle(folder: Path) -> bool:
    """Return whether a folder holds an exported model."""
    return (folder / CARD).exists()


def read_card(folder: Path) -> Card:
    """Read and check a bundle's card."""
    path = folder / CARD
    try:
        card: Card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{folder} is no bundle (no card.json): heat export makes one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read ({error}): export again") from None
    version = card.get("format") if isinstance(card, dict) else None
    if version != CARD_FORMAT:
        raise BundleError(wrong_format(path, version, [CARD_FORMAT], "export again"))
    check_card(card, path)
    return card


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}; export again") from None


def check_files(folder: Path, card: Card) -> None:
    """Raise `BundleError` where a file of a bundle is not the one that its card describes."""
    for name, expected in card["files"].items():
        if file_hash(folder / name) != expected:
            raise BundleError(f"{folder / name} is not the file the card describes: export again")


def threads_of(card: Card) -> int:
    """Return a bundle's threads here: the machine that exported it may have more cores."""
    return min(int(card["threads"]), core_count())


class Bundle:
    """A loaded detector: `Bundle(folder).detect(image)`."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        """Check the files against the card and load the model."""
        self.folder = folder
        self.card = read_card(folder)
        check_files(folder, self.card)
        self.names = self.card["names"]
        limits = score_limits(self.card, self.names)
        self.limits = limits if self.card.get("thresholds") else None
        """The lowest score of each class that `detect` returns by itself; None for all."""
        self.input_hw = (self.card["input"]["height"], self.card["input"]["width"])
        self.threads = check_threads(threads_of(self.card) if threads is None else threads)
        self._session = open_session(
            self.card["runtime"],
            folder / self.card["model"],
            self.threads,
            self.card["precision"],
            **waiting_of(self.card),
        )
        self._closed = False
        self._post: Callable[..., list[Array]] = lambda *outputs: list(outputs)
        if self.card.get("raw"):
            try:
                self._post = Postprocess(self.card["decode"], self.input_hw)
            except (KeyError, TypeError, ValueError, ArithmeticError) as error:
                raise BundleError(
                    f"{folder / 'card.json'} is damaged (decode: {type(error).__name__} {error}): "
                    "export again"
                ) from None
        elif self.card.get("padded"):
            self._post = unpad

    def detect(self, image: Any, score: float | None = None) -> Found:
        """Find objects in an RGB image: uint8 [height, width, 3], a file's path, or PIL's.

        Objects of at least `score` are returned; without it those that reach the card's threshold
        of their class, and all that the model outputs where the card has no thresholds.
        """
        if self._closed:
            raise UserError(f"{self.folder} was closed: load it again")
        least = self.limits if score is None else check_score(score)
        image = as_pixels(image)
        marks = [time.perf_counter()]
        pixels, scale = letterbox(image, self.input_hw)
        marks.append(time.perf_counter())
        outputs = self._run(pixels)
        marks.append(time.perf_counter())
        try:
            boxes, scores, labels = self._post(*outputs)
            order = np.argsort(-scores, kind="stable")  # that of scores before calibration
            boxes, scores, labels = boxes[order], scores[order], labels[order]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise BundleError(
                f"{self.folder}: the outputs are not those that its card describes "
                f"({type(error).__name__}: {str(error)[:80]}): export again"
            ) from None
        boxes = boxes_to_image(boxes, scale, image.shape[:2])
        marks.append(time.perf_counter())
        before, model, after = (1e3 * (b - a) for a, b in itertools.pairwise(marks))
        found = Found(boxes, scores, labels, model, before, after, names=tuple(self.names))
        return found if least is None else found.above(least)

    def _run(self, pixels: Array) -> list[Array]:
        try:
            return self._session.run({"image": pixels[None]})
        except HeatError:
            raise
        except Exception as error:  # each runtime has errors of its own
            height, width = self.input_hw
            reason = " ".join(str(error).split())[:150]
            raise BundleError(
                f"{self.folder}: its model does not run on {height}x{width} pixels ({reason}): "
                "export again"
            ) from None

    def held(self) -> None:
        """Return nothing: one network holds no rate."""

    def close(self) -> None:
        """Release the model and its memory; a second call does nothing."""
        self._closed = True
        self._session.close()

    def __enter__(self) -> Self:
        """Return the bundle."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Close it."""
        self.close()
