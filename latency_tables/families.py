"""The prior of entries' latencies: families, features, similarity.

A family is every entry of one operator, at all widths and maps. Within a family the logarithm of
the latency is a line in the logarithms of multiply-adds and bytes moved, plus a smooth deviation
over widths and map, plus a small deviation of each entry's own, such as a slower kernel at some
widths. The standard deviations of these parts are given here; the posterior follows from the
samples (`model.py`).
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from supernet.heatdetr.operators import OPERATORS
from supernet.heatdetr.operators.entries import Entry

Array = NDArray[np.float64]

FLOAT_BYTES = 4

SLOPE_MACS = 0.7
"""Expected exponent of the multiply-adds; below 1, as small operators use a machine less fully."""
SLOPE_BYTES = 0.2
"""Expected exponent of the bytes moved."""
SLOPE_SD = 0.25
LEVEL_SD = 1.5
"""Standard deviation of a family's level in log units: a factor of 4.5 up or down."""
ALIGNED_SD = 0.08
"""Widths that are multiples of 64 may run on faster kernels than odd multiples of 32."""
SMOOTH_SD = 0.15
"""Deviation from the line, shared by neighbours in width and map size."""
OWN_SD = 0.03
"""Deviation of an entry alone; only repeated samples establish it."""
WIDTH_OCTAVES = 1.0
"""Length scale of the smooth deviation in log2 of the widths."""
MAP_OCTAVES = 2.0
"""Length scale of the smooth deviation in log2 of the map's number of cells."""


def bytes_moved(entry: Entry) -> int:
    """Return the bytes of inputs, outputs and parameters in float32."""
    operator = OPERATORS[entry.op]
    maps = (*operator.inputs(entry), *operator.outputs(entry))
    return FLOAT_BYTES * (operator.params(entry) + sum(c * h * w for c, h, w in maps))


def multiply_adds(entry: Entry) -> int:
    """Return the multiply-adds; for an operator without any, the count of numbers moved."""
    return OPERATORS[entry.op].macs(entry).total or bytes_moved(entry) // FLOAT_BYTES


@lru_cache(maxsize=8192)
def _features(entry: Entry) -> tuple[float, ...]:
    return (
        math.log(multiply_adds(entry)),
        math.log(bytes_moved(entry)),
        1.0 if entry.d_in % 64 == 0 else 0.0,
        1.0 if entry.d_out % 64 == 0 else 0.0,
        math.log2(max(1, entry.d_in)),
        math.log2(max(1, entry.d_out)),
        math.log2(entry.h * entry.w),
    )


def prior_mean(entries: Sequence[Entry]) -> Array:
    """Return log milliseconds up to an unknown level, shape [len(entries)]."""
    found = np.array([_features(entry) for entry in entries])
    mean = SLOPE_MACS * found[:, 0] + SLOPE_BYTES * found[:, 1]
    return np.asarray(mean, dtype=np.float64)


def prior_covariance(entries: Sequence[Entry]) -> Array:
    """Return the covariance of log milliseconds, shape [len(entries), len(entries)].

    Entries of different families are independent: each family has a level of its own (`LEVEL_SD`).
    """
    found = np.array([_features(entry) for entry in entries])
    names = np.array([family(entry) for entry in entries])
    total = np.zeros((len(entries), len(entries)))
    for name in np.unique(names):
        index = np.flatnonzero(names == name)
        total[np.ix_(index, index)] = _family_covariance(found[index])
    return total


def family(entry: Entry) -> str:
    """Return the name of an entry's family: its operator."""
    return entry.op


def _family_covariance(found: Array) -> Array:
    centred = found[:, :4] - found[:, :4].mean(axis=0)
    scales = np.array([SLOPE_SD, SLOPE_SD, ALIGNED_SD, ALIGNED_SD])
    line = (centred * scales) @ (centred * scales).T
    steps = found[:, 4:7] / np.array([WIDTH_OCTAVES, WIDTH_OCTAVES, MAP_OCTAVES])
    squares = ((steps[:, None] - steps[None]) ** 2).sum(axis=2)
    smooth = SMOOTH_SD**2 * np.exp(-0.5 * squares)
    own = OWN_SD**2 * np.eye(len(found))
    return np.asarray(LEVEL_SD**2 + line + smooth + own, dtype=np.float64)
