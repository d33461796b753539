"""Crops of random area, shape and place, as classifiers are trained with: Szegedy et al. 2015."""

import numpy as np


def random_crop(
    image_hw: tuple[int, ...],
    areas: tuple[float, float],
    ratios: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Return x1, y1, x2, y2 in pixels of a crop, at least one pixel wide and high.

    `areas` is the range of its share of the image, `ratios` that of width over height; where that
    does not fit into the image, the crop is cut off at its sides.
    """
    height, width = image_hw[:2]
    area = height * width * rng.uniform(*areas)
    ratio = np.exp(rng.uniform(*np.log(ratios)))
    w = int(min(width, max(1, round((area * ratio) ** 0.5))))
    h = int(min(height, max(1, round((area / ratio) ** 0.5))))
    x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    return x, y, x + w, y + h
