"""Corrects an estimated table by whole networks whose time on the device somebody has published.

    t(network) = factor * its roofline + overhead of a frame

The roofline is that of `roofline.py`. Published times are of few networks, often in another runtime
than the one that is estimated: what was used, and how far it misses a point that it was not fitted
on, is kept with the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from supernet.heatdetr.architecture import preset
from supernet.heatdetr.operators.entries import Entry

from .device_file import Figures, Published
from .devices import Target
from .families import FLOAT_BYTES
from .probe.setting import Setting
from .roofline import BYTES, Efficiencies
from .sidecar import PublishedFacts

PLAIN = "repcnn"
"""The operator whose coefficients stand for plain convolutions, in networks that are not HEAT's."""

ONCE = "preprocess"
"""The operator that every network has once: its rows take the overhead of a frame."""


@dataclass(frozen=True, slots=True)
class Correction:
    """What an estimate is corrected by; nothing where nothing was published."""

    factor: float = 1.0
    overhead_ms: float = 0.0
    """Milliseconds of a frame whatever the network; 0 for points of another runtime."""
    points: tuple[Published, ...] = ()
    errors: tuple[float, ...] = ()
    """Of each point, predicted by the others: predicted / published - 1; none of a single one."""
    overhead_found_ms: float = 0.0
    """The overhead of a frame in the points' own runtime."""

    def ms(self, entry: Entry, estimated_ms: float) -> float:
        """Return the corrected milliseconds of an entry."""
        return self.factor * estimated_ms + self.overhead_ms * (entry.op == ONCE)

    def facts(self) -> PublishedFacts | None:
        """Return what the table states of it; None without points."""
        if not self.points:
            return None
        return {
            "factor": round(self.factor, 4),
            "overhead_ms": round(self.overhead_ms, 4),
            "overhead_of_these_points_ms": round(self.overhead_found_ms, 4),
            "runtime": self.points[0].runtime,
            "precision": self.points[0].precision,
            "points": {point.network: round(point.ms, 3) for point in self.points},
            "leave_one_out": {
                point.network: round(error, 4)
                for point, error in zip(self.points, self.errors, strict=len(self.points) > 1)
            },
            "sources": sorted({point.source for point in self.points}),
        }


def correction_for(target: Target, figures: Figures, efficiencies: Efficiencies) -> Correction:
    """Return the correction by what was published of a device in the target's precision.

    Points of the same runtime are preferred. Those of another give the factor only: what a frame
    costs beside its work is the runtime's.
    """
    points = [p for p in target.device.published if p.precision == target.precision]
    own = [point for point in points if point.runtime == target.runtime]
    return fitted(own or points, figures, efficiencies, same_runtime=bool(own))


def fitted(
    points: Sequence[Published], figures: Figures, efficiencies: Efficiencies, *, same_runtime: bool
) -> Correction:
    """Fit factor and overhead to published points, and predict each by the others."""
    if not points:
        return Correction()
    rooflines_ms = np.array([roofline_ms(point, figures, efficiencies) for point in points])
    times_ms = np.array([point.ms for point in points])
    factor, overhead_ms = _fit(rooflines_ms, times_ms)
    errors = []
    for index, ms in enumerate(times_ms if len(times_ms) > 1 else ()):
        others = np.arange(len(points)) != index
        slope, rest = _fit(rooflines_ms[others], times_ms[others])
        errors.append(float((slope * rooflines_ms[index] + rest) / ms - 1))
    return Correction(
        factor, overhead_ms if same_runtime else 0.0, tuple(points), tuple(errors), overhead_ms
    )


def roofline_ms(point: Published, figures: Figures, efficiencies: Efficiencies) -> float:
    """Return the roofline's milliseconds of a published network."""
    # On all cores, as a network given by its counts.
    threads = max(1, figures.cores)
    setting = Setting(runtime=point.runtime, precision=point.precision, threads=threads)
    if point.preset:
        network = preset(point.preset, input_size=point.input_size, global_block="oa")
        return sum(efficiencies.ms(entry, figures, setting) for entry in network.entries().values())
    compute_s = 2 * point.gmacs * point.batch / figures.peak_gflops[point.precision]
    maps_ms = point.maps_m * point.batch * FLOAT_BYTES / figures.bandwidth_gbs
    weights_ms = point.weights_m * BYTES[point.precision] / figures.bandwidth_gbs
    launch_ms = point.nodes * figures.launch_us / 1e3
    return efficiencies.weighted(PLAIN, (compute_s * 1e3, maps_ms + weights_ms, launch_ms))


def _fit(rooflines_ms: npt.NDArray[Any], times_ms: npt.NDArray[Any]) -> tuple[float, float]:
    """Return factor and overhead with the least squared relative error, neither negative."""
    slopes, ones = rooflines_ms / times_ms, 1.0 / times_ms
    if len(times_ms) > 1:
        both = np.linalg.lstsq(np.stack([slopes, ones], 1), np.ones(len(ones)), rcond=None)[0]
        if (both >= 0).all():
            return float(both[0]), float(both[1])
    return float(slopes.sum() / (slopes @ slopes)), 0.0
