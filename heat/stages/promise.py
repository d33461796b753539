"""The promise of a bundle's frame rate: target and prediction of the thinning it is from."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.edge.bench import Speed
from deploy.form import Form
from latency_tables.devices import Target
from latency_tables.probe.setting import Setting
from latency_tables.probe.timings import NetworkResult
from latency_tables.store import conditions_of
from latency_tables.table import LatencyTable
from supernet.heatdetr.architecture import Architecture
from supernet.network import AnyArchitecture

from ..tables import recorded_table
from ..thinning.measuring import measure_bundle, warn_if_slower
from ..thinning.thinned import Thinned
from ..workspace import Workspace
from .network import is_thinned

MAX_MEASUREMENTS = 3
RATIO_BOUNDS = (0.9, 1.1)
"""Allowed measured / predicted frame rate."""


@dataclass(slots=True)
class Promise:
    """What the frame rate of a bundle is compared with; nothing where no prediction is about it."""

    thinned: Thinned | None = None
    """The thinning whose prediction is about this network and how it is run."""
    table: LatencyTable | None = None
    """The latency table that it was predicted by."""
    broken: str = ""
    """Which promise the last measurement broke; empty if none."""

    @property
    def predicted_fps(self) -> float | None:
        """Sustained frame rate that thinning predicted."""
        return self.thinned.predicted_fps if self.thinned is not None else None

    @property
    def target_fps(self) -> float | None:
        """Frame rate that thinning was asked for."""
        return self.thinned.target_fps if self.thinned is not None else None

    def measure(self, model: Path, architecture: AnyArchitecture, setting: Setting) -> Speed:
        """Measure an exported model, again where a promise is broken; set `broken`."""
        results: list[NetworkResult] = []
        for attempt in range(MAX_MEASUREMENTS):
            speed = measure_bundle(model, architecture, setting, self.table, results)
            warn_if_slower(speed)
            self.broken = broken_promises(speed.fps, self.predicted_fps, self.target_fps)
            if not self.broken:
                break
            print(f"warning: measurement {attempt + 1}: {self.broken}", file=sys.stderr)
        return speed


def promise_of(
    workspace: Workspace,
    thinned: Thinned | None,
    architecture: AnyArchitecture,
    target: Target,
    form: Form,
) -> Promise:
    """Return the promise of a bundle of this network in this form on this machine."""
    if thinned is None or not is_about(workspace, thinned, architecture, target, form):
        return Promise()
    here = model_of(target)
    if thinned.model != here:
        if thinned.here:
            print(
                f"warning: it was thinned on {thinned.model}, this machine is {here}: neither "
                "target nor prediction is compared; heat thin measures anew",
                file=sys.stderr,
            )
        return Promise()
    table = _table_of(workspace, thinned, target)
    return Promise() if table is None else Promise(thinned, table)


def is_about(
    workspace: Workspace,
    thinned: Thinned,
    architecture: AnyArchitecture,
    target: Target,
    form: Form,
) -> bool:
    """Return whether the prediction of a thinning is about this network and how it is run."""
    return (
        architecture.family == "heatdetr"
        and not (form.raw or form.dynamic_batch)
        and form.runs_here
        and (thinned.runtime, thinned.threads) == (form.runtime, target.threads)
        and thinned.precision == form.precision
        and workspace.architecture.exists()
        and is_thinned(architecture, found := Architecture.load(workspace.architecture))
        # Another one lies there where a thinning was ended before it was recorded.
        and (found.widths, found.blocks) == (thinned.widths, thinned.blocks)
        and found.global_block == thinned.global_block
    )


def broken_promises(fps: float, predicted: float | None, target_fps: float | None) -> str:
    """Return which promise a measured frame rate breaks, or an empty string."""
    if target_fps is not None and fps < target_fps:
        return f"{fps:.2f} FPS measured, target {target_fps:g}: run heat thin again"
    if predicted is not None and not RATIO_BOUNDS[0] <= fps / predicted <= RATIO_BOUNDS[1]:
        return (
            f"{fps:.2f} FPS measured, {predicted:.2f} predicted (ratio {fps / predicted:.3f}, "
            f"allowed {RATIO_BOUNDS[0]} to {RATIO_BOUNDS[1]}): run heat thin again"
        )
    return ""


def model_of(target: Target) -> str:
    """Return the model of what executes: the GPU's where there is one, as in latency tables."""
    return target.gpu.model if target.gpu is not None else target.detected.model


def _table_of(workspace: Workspace, thinned: Thinned, target: Target) -> LatencyTable | None:
    """Return the table that was thinned by; None, and a warning, where it is not of this machine.

    Another version of the runtime, or other cores, would pass for a slow state of the same machine.
    """
    table = recorded_table(workspace, thinned.table)
    here = conditions_of(target, table.conditions.input_size)
    different = replace(here, device=table.conditions.device).differences(table.conditions)
    if not different:
        return table
    print(
        f"warning: the table that was thinned by is of other conditions ({different}): its "
        "prediction is not compared; heat thin measures anew",
        file=sys.stderr,
    )
    return None
