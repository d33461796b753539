"""What the heads of a HeatDETR returned: one tuple of maps for each head."""

from collections.abc import Sequence

from torch import Tensor

Maps = tuple[Tensor, ...]
"""Class logits [B, A, K, h, w], deltas [B, A, 4, h, w], and in training the logits of the bins
[B, A, 4, N, h, w] where the head predicts distributions."""


def by_head(outputs: Sequence[Tensor]) -> list[Maps]:
    """Return the maps of each head: of one, or in training of one-to-one networks of two."""
    each = 3 if len(outputs) % 3 == 0 else 2
    return [tuple(outputs[at : at + each]) for at in range(0, len(outputs), each)]
