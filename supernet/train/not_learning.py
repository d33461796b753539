"""Says in words, after a third of a training, that it is not learning, and what to look at."""

import math
from collections.abc import Collection, Mapping, Sequence

FEWEST_EPOCHS = 3
"""Shorter trainings are not judged earlier than this."""
FALLEN = 0.97
"""A loss that is still above this share of its first value has not fallen."""
LEAST_AP = 0.001
LOOK = "look at first-batches.jpg (do the boxes lie on the objects?)"


def judged_after(planned_epochs: int) -> int:
    """Return the number of epochs after which a training is judged, once."""
    return max(FEWEST_EPOCHS, math.ceil(planned_epochs / 3))


def signs(
    history: Sequence[Mapping[str, object]], terms: Collection[str], planned_epochs: int
) -> list[str]:
    """Return what shows that a training is not learning; empty where nothing does.

    `history` has a row for each epoch with the mean of each of the loss's `terms`, and AP where it
    was computed. Only the epoch of `judged_after` is judged, so that nothing is said twice.
    """
    if len(history) != judged_after(planned_epochs):
        return []
    found = []
    # Terms that came later, as those of images without labels, say nothing of the others.
    whole = [term for term in terms if term in history[0]]
    losses = [sum(_number(row, term) for term in whole) for row in history]
    if "boxes" in terms and not any(_number(row, "boxes") for row in history):
        found.append(
            "no box was assigned to an anchor: heat data check counts the boxes that none fits; a "
            f"larger --input-size or --output-stride 16 helps small ones; {LOOK}"
        )
    elif losses[-1] > FALLEN * losses[0]:
        found.append(
            f"the loss has not fallen ({losses[0]:.3f} in the first epoch, {losses[-1]:.3f} now): "
            f"try a third of the --learning-rate, or three times as much; {LOOK}"
        )
    scores = [_number(row, "ap") for row in history if "ap" in row]
    if scores and max(scores) < LEAST_AP:
        found.append(
            f"AP is {max(scores):.4f}, though small objects and many classes start late: {LOOK}; "
            "heat data check counts the boxes that no anchor fits"
        )
    return found


def _number(row: Mapping[str, object], key: str) -> float:
    value = row.get(key, 0.0)
    return float(value) if isinstance(value, int | float) else 0.0
