"""A roofline for each operator: what its entries take at a device's published figures.

    t(entry) = a * 2 MACs / peak + b * bytes / bandwidth + c * nodes * launch

The three coefficients of an operator are its inefficiencies: 1 reaches the published figures. They
are fitted on measured tables and stored in `efficiencies.json`.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Self

import numpy as np
import onnx

from supernet.atomic import write_text
from supernet.errors import DeviceError, TableError
from supernet.heatdetr.architecture import CONDENSED
from supernet.heatdetr.operators import OPERATORS
from supernet.heatdetr.operators.entries import Entry

from .costs import MIB
from .device_file import Figures
from .families import FLOAT_BYTES
from .models import write
from .probe.setting import Setting
from .sidecar import EstimateErrors
from .table import LatencyTable
from .terms import ProbeModel

EFFICIENCIES = Path(__file__).parent / "efficiencies.json"

SMALLEST_MS = 0.02
"""Entries below it are mostly noise: no coefficients are fitted on them, no errors reported."""

BYTES = {"f32": 4, "f16": 2, "bf16": 2, "int8": 1}

LARGEST = 5.0
"""Largest coefficient: beyond it one term of the roofline would absorb another's time."""

NEAREST: Mapping[str, str] = {
    **dict.fromkeys(CONDENSED, "oa"),
    **{f"t1_{kind}": "t1_oa" for kind in CONDENSED},
    "decode_voted": "decode",
    "head_distributions": "head",
    "top_k": "decode",
}
"""For operators on no measured table yet, the operator that they replace: its coefficients are
used."""

Parts = tuple[float, float, float]
"""Milliseconds of multiply-adds, of memory traffic and of starting nodes."""


def ideal_parts(entry: Entry, figures: Figures, setting: Setting) -> Parts:
    """Return the milliseconds of an entry at the device's published figures."""
    if setting.precision not in figures.peak_gflops:
        known = ", ".join(figures.peak_gflops)
        raise DeviceError(
            f"no figure for {setting.precision}: --precision {known} can be estimated"
        )
    share = min(1.0, setting.threads / figures.cores)
    operator = OPERATORS[entry.op]
    compute = 2 * operator.macs(entry).total / (figures.peak_gflops[setting.precision] * share)
    cells = sum(c * h * w for c, h, w in (*operator.inputs(entry), *operator.outputs(entry)))
    cells += 2 * operator.hidden * entry.d_out * entry.h * entry.w
    maps = cells * FLOAT_BYTES
    fits = maps <= figures.cache_mb * MIB
    weights = operator.params(entry) * BYTES[setting.precision]
    traffic = maps / (figures.cache_gbs if fits else figures.bandwidth_gbs)
    traffic = traffic / share if fits else traffic
    traffic += weights / figures.bandwidth_gbs
    nodes = node_count(operator.narrow(entry))
    return compute / 1e6, traffic / 1e6, nodes * figures.launch_us / 1e3


@lru_cache(maxsize=1024)
def node_count(entry: Entry) -> int:
    """Return the number of nodes of an entry's deployed graph."""
    return len(onnx.load_from_string(write(ProbeModel("alone", entry)).onnx).graph.node)


@dataclass(frozen=True, slots=True)
class Efficiencies:
    """Roofline coefficients of each operator."""

    coefficients: Mapping[str, Parts]
    fitted_on: tuple[str, ...]
    """Names of the tables that the coefficients were fitted on."""
    error: EstimateErrors

    def ms(self, entry: Entry, figures: Figures, setting: Setting) -> float:
        """Return an entry's estimated milliseconds."""
        return self.weighted(self.fitted(entry.op), ideal_parts(entry, figures, setting))

    def weighted(self, op: str, ideal: Parts) -> float:
        """Return the milliseconds of ideal ones, by an operator's coefficients."""
        weights = self.coefficients[op]
        return sum(weight * part for weight, part in zip(weights, ideal, strict=True))

    def fitted(self, op: str) -> str:
        """Return the operator whose coefficients are used for `op`: itself where it was measured.

        Raises `TableError` where neither `op` nor its nearest operator has coefficients.
        """
        for name in (op, NEAREST.get(op, op)):
            if name in self.coefficients:
                return name
        raise TableError(
            f"no coefficients for the operator {op}: measure it (heat profile), or fit them anew "
            "(benchmarks/estimate_error.py --write)"
        )

    @classmethod
    def fit(cls, tables: Sequence[tuple[LatencyTable, Figures]]) -> Self:
        """Fit every operator's coefficients on measured tables, minimising relative errors."""
        rows: dict[str, list[tuple[Parts, float]]] = defaultdict(list)
        for table, figures in tables:
            for entry, ms in table.times_ms().items():
                if ms > 0:
                    parts = ideal_parts(entry, figures, table.conditions.setting)
                    rows[entry.op].append((parts, ms))
        coefficients = {op: _nonnegative(_clear(found)) for op, found in rows.items()}
        return cls(coefficients, tuple(table.conditions.stem for table, _ in tables), {})

    @classmethod
    def load(cls, path: Path = EFFICIENCIES) -> Self:
        """Read the coefficients that HEAT ships."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            coefficients = {op: (a, b, c) for op, (a, b, c) in values["coefficients"].items()}
            return cls(coefficients, tuple(values["fitted_on"]), values["error"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise TableError(
                f"{path} cannot be read ({error}): benchmarks/estimate_error.py --write makes it"
            ) from None

    def save(self, path: Path = EFFICIENCIES) -> None:
        """Write the file that HEAT ships."""
        write_text(path, json.dumps(asdict(self), indent=1) + "\n")


def _clear(rows: Sequence[tuple[Parts, float]]) -> Sequence[tuple[Parts, float]]:
    """Return the rows that are not mostly noise, or all where there are none."""
    return [row for row in rows if row[1] >= SMALLEST_MS] or rows


def _nonnegative(rows: Sequence[tuple[Parts, float]]) -> Parts:
    """Return the coefficients in [0, LARGEST] with the least squared relative error.

    Every subset of the three is tried; the best admissible one is taken.
    """
    left = np.array([np.array(parts) / ms for parts, ms in rows])
    right = np.ones(len(rows))
    best, least = np.zeros(3), math.inf
    for size in (1, 2, 3):
        for kept in combinations(range(3), size):
            found = np.zeros(3)
            found[list(kept)] = np.linalg.lstsq(left[:, kept], right, rcond=None)[0]
            loss = float(((left @ found - right) ** 2).sum())
            if (found >= 0).all() and (found <= LARGEST).all() and loss < least:
                best, least = found, loss
    return float(best[0]), float(best[1]), float(best[2])
