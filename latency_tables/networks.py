"""Architectures of whole networks: random ones to check a table with, and the reference network."""

from collections.abc import Sequence

import numpy as np

from supernet.heatdetr.architecture import LOCAL_OPERATORS, WIDTH_STEP, Architecture


def random_architecture(
    rng: np.random.Generator,
    template: Architecture,
    widths: Sequence[int],
    positions: Sequence[int],
) -> Architecture:
    """Draw a network of the space, uniform in widths, depths and operators."""
    chosen = [int(rng.integers(1, limit // WIDTH_STEP + 1)) * WIDTH_STEP for limit in widths]
    letters = list(LOCAL_OPERATORS)
    strings = ["".join(rng.choice(letters, int(rng.integers(1, count + 1)))) for count in positions]
    return template.with_(
        name="random",
        widths=(chosen[0], chosen[1], chosen[2], chosen[3]),
        blocks=(strings[0], strings[1], strings[2], strings[3]),
    )


def reference_architecture(input_size: tuple[int, int]) -> Architecture:
    """Return the reference network, timed in every batch to follow the machine's speed.

    It depends on the input size only, so that all tables of one size have the same.
    """
    return Architecture(
        name="reference",
        widths=(32, 64, 96, 128),
        blocks=("R", "W", "RS", "W"),
        t1_blocks=1,
        t2_blocks=1,
        input_size=input_size,
    )
