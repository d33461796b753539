"""Weights of the boxes of several images, of which some may have none."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .detection_set import Record
from .labelled_image import LabelledImage


def joined_weights(
    parts: Sequence[Record] | Sequence[LabelledImage],
) -> npt.NDArray[np.float32] | None:
    """Return the weights of all boxes in order [N], 1 where none are given; None for no weights."""
    if all(part.weights is None for part in parts):
        return None
    return np.concatenate(
        [
            np.ones(len(part.labels), np.float32) if part.weights is None else part.weights
            for part in parts
        ]
    )
