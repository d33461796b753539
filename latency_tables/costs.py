"""A network's costs besides time: size of its file and peak memory of the process that runs it.

Size is the sum of the ONNX bytes of each entry, written once. Memory is a linear model fitted to
measured networks: `base + per_size * size + per_working_set * largest working set`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np

from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.operators import OPERATORS
from supernet.heatdetr.operators.entries import Entry

from .families import FLOAT_BYTES
from .models import PLAIN, write
from .probe.setting import Setting
from .sidecar import MemoryRecord
from .terms import ProbeModel

MIB = 2**20


@lru_cache(maxsize=4096)
def entry_bytes(entry: Entry, setting: Setting = PLAIN) -> int:
    """Return the bytes that an entry adds to the ONNX file: weights, constants and nodes."""
    return len(write(ProbeModel("alone", entry), setting).onnx)


def size_mb(architecture: Architecture, setting: Setting = PLAIN) -> float:
    """Return the size of the deployed ONNX file in MiB; for torch that of the f32 file."""
    setting = PLAIN if setting.runtime == "torch" else setting
    return sum(entry_bytes(e, setting) for e in architecture.entries().values()) / MIB


def working_set_mb(architecture: Architecture) -> float:
    """Return the largest sum of an operator's inputs, outputs and widest inner map, in MiB."""
    return max(_working_set(entry) for entry in architecture.entries().values()) / MIB


def _working_set(entry: Entry) -> int:
    operator = OPERATORS[entry.op]
    maps = (*operator.inputs(entry), *operator.outputs(entry))
    hidden = operator.hidden * entry.d_out * entry.h * entry.w
    return FLOAT_BYTES * (sum(c * h * w for c, h, w in maps) + hidden)


@dataclass(frozen=True, slots=True)
class MemorySample:
    """One measured network."""

    size_mb: float
    working_set_mb: float
    peak_mb: float
    """Peak resident memory of a fresh process that loads the model and runs it."""


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """Peak resident memory of the process that runs a network, in MiB."""

    base_mb: float
    """Python, numpy and the runtime."""
    per_size: float
    per_working_set: float
    anchors: tuple[MemorySample, ...] = ()
    held_out: tuple[MemorySample, ...] = ()

    def predict_mb(self, size: float, working_set: float) -> float:
        """Return the peak of a network of this size and largest working set, all in MiB."""
        return self.base_mb + self.per_size * size + self.per_working_set * working_set

    @property
    def held_out_error(self) -> float | None:
        """Median |predicted / measured - 1| of the held-out networks."""
        errors = [
            abs(self.predict_mb(s.size_mb, s.working_set_mb) / s.peak_mb - 1) for s in self.held_out
        ]
        return float(np.median(errors)) if errors else None

    @classmethod
    def fit(cls, anchors: Sequence[MemorySample], held_out: Sequence[MemorySample]) -> Self:
        """Fit the line on the anchors by least squares of relative errors."""
        rows = np.array([[1.0, s.size_mb, s.working_set_mb] for s in anchors])
        peaks = np.array([s.peak_mb for s in anchors])
        rows /= peaks[:, None]
        best = np.zeros(3)
        # Size and working set grow together: where one's coefficient is negative, it is left out.
        for kept in ([0, 1, 2], [0, 1], [0, 2], [0]):
            found = np.zeros(3)
            found[kept] = np.linalg.lstsq(rows[:, kept], np.ones(len(peaks)), rcond=None)[0]
            best = found
            if (found >= 0).all():
                break
        base, size, working = (float(value) for value in best)
        return cls(base, size, working, tuple(anchors), tuple(held_out))

    @classmethod
    def from_json(cls, record: MemoryRecord) -> Self:
        """Read the fields as `asdict` returns them."""
        return cls(
            record["base_mb"],
            record["per_size"],
            record["per_working_set"],
            tuple(MemorySample(**sample) for sample in record["anchors"]),
            tuple(MemorySample(**sample) for sample in record["held_out"]),
        )
