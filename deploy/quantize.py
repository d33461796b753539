"""Accuracy-aware INT8: the parts that cost accuracy stay in floating point.

Each latency entry is quantized alone to see how much the head's maps change; in that order as few
as possible are kept in floating point until the artefact's accuracy is within what may be lost.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from supernet.errors import PromiseError
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.fake_quant import simulate_int8
from supernet.heatdetr.quantization import Quantization, calibrate, place_of
from supernet.progress import Progress

CALIBRATION_IMAGES = 64
SENSITIVITY_IMAGES = 4


@dataclass(frozen=True, slots=True)
class Attempt:
    """One artefact that was tried."""

    kept: tuple[str, ...]
    """Entries in floating point."""
    lost: float
    """Points lost against floating point."""


def quantize(
    network: Detector,
    batches: Sequence[Tensor],
    lost: Callable[[Quantization], float] | None,
    max_drop: float,
    *,
    outputs: bool = False,
) -> tuple[Quantization, list[Attempt]]:
    """Return the plan with the fewest entries in floating point that loses at most `max_drop`.

    `batches` are calibration images uint8 [B, H, W, 3]; `lost` builds the
    artefact of a plan and returns how many points it loses; without it every entry is quantized.
    With `outputs` those of convolutions are quantized too. Raises `PromiseError` where quantizing
    the least sensitive entry alone already loses too much.
    """
    folded = network.deployed()
    with Progress("calibrate", 2) as bar:
        plan = calibrate(folded, batches, outputs=outputs)
        bar.advance()
        if lost is None:
            bar.advance()
            return plan, []
        order = by_sensitivity(folded, plan, batches[0][:SENSITIVITY_IMAGES])
        bar.advance()
    attempts: list[Attempt] = []

    def attempt(count: int) -> bool:
        attempts.append(Attempt(tuple(order[:count]), lost(plan.keeping(order[:count]))))
        print_attempt(attempts[-1], max_drop)
        return attempts[-1].lost <= max_drop

    too_few, enough, most = -1, 0, len(order) - 1
    while not attempt(enough):
        if enough >= most:
            raise PromiseError(
                f"INT8 loses {attempts[-1].lost:.2f} points with {enough} of {len(order)} parts "
                f"in floating point, --max-ap-drop {max_drop:g} allows less: more images with "
                "--data, or another --precision"
            )
        too_few, enough = enough, min(most, max(1, 2 * enough))
    while enough - too_few > 1:
        middle = (enough + too_few) // 2
        if attempt(middle):
            enough = middle
        else:
            too_few = middle
    return plan.keeping(order[:enough]), attempts


def print_attempt(attempt: Attempt, max_drop: float) -> None:
    """Log an attempt on stderr."""
    kept = ", ".join(attempt.kept) or "nothing"
    verdict = "kept" if attempt.lost <= max_drop else "too much"
    print(
        f"int8 with {kept} in floating point: {attempt.lost:+.2f} points lost ({verdict})",
        file=sys.stderr,
    )


@torch.no_grad()
def by_sensitivity(folded: Detector, plan: Quantization, images: Tensor) -> list[str]:
    """Return the entries with convolutions, those whose quantization alone changes most first."""
    places = sorted({place_of(name) for name in plan.ranges})
    exact = folded(images)
    changes = {}
    for place in places:
        alone = plan.keeping(set(places) - {place})
        quantized = simulate_int8(folded, [], alone)(images)
        changes[place] = sum(
            float((a - b).norm() / b.norm()) for a, b in zip(quantized, exact, strict=True)
        )
    return sorted(places, key=lambda place: -changes[place])
