"""The promise of a bundle's frame rate: target and prediction of the thinning it is from."""

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from deploy.edge.bench import Speed
from deploy.form import Form
from latency_tables.devices import Target
from latency_tables.meter import FRESH_COMMAND
from latency_tables.probe.fresh import peak_mb
from latency_tables.probe.setting import Setting
from latency_tables.probe.timings import NetworkResult
from latency_tables.store import conditions_of
from latency_tables.table import LatencyTable
from supernet.heatdetr.architecture import Architecture, NMSHead
from supernet.network import AnyArchitecture

from ..tables import recorded_table
from ..thinning.again import run_again
from ..thinning.limits import Cost
from ..thinning.measuring import file_model, measure_bundle, warn_if_slower
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
    """The thinning that was of this network and of how it is run, on this machine."""
    table: LatencyTable | None = None
    """The latency table that it was predicted by; None where that is of other conditions now."""
    broken: str = ""
    """Which promise the last measurement broke; empty if none."""

    @property
    def predicted_fps(self) -> float | None:
        """Sustained frame rate that thinning predicted; None where its table holds no more."""
        return self.thinned.predicted_fps if self.thinned and self.table else None

    @property
    def held_out_error(self) -> float | None:
        """Error that the table of the prediction states."""
        return self.thinned.held_out_error if self.thinned and self.table else None

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
            self.broken = self.broken or self._exceeded(model, architecture, setting, speed)
            if not self.broken:
                break
            print(f"warning: measurement {attempt + 1}: {self.broken}", file=sys.stderr)
        return speed

    def _exceeded(
        self, model: Path, architecture: AnyArchitecture, setting: Setting, speed: Speed
    ) -> str:
        """Return which other limits of the thinning a measured bundle breaks, or nothing."""
        thinned = self.thinned
        if thinned is None:
            return ""
        limits = thinned.limits
        peak = math.nan
        if limits.max_memory_mb is not None and model.suffix != ".engine":
            peak = peak_mb(file_model(model, architecture.input_size), setting, FRESH_COMMAND)
        cost = Cost(
            fps=speed.fps,
            size_mb=model.stat().st_size / 2**20 if model.suffix == ".onnx" else math.nan,
            memory_mb=peak,
            p50_ms=speed.ms,
            p95_ms=speed.ms * speed.p95_ms / speed.p50_ms,
        )
        reasons = limits.broken(cost)
        return f"measured: {'; '.join(reasons)}: {run_again()}" if reasons else ""


def promise_of(
    workspace: Workspace,
    thinned: Thinned | None,
    architecture: AnyArchitecture,
    target: Target,
    form: Form,
) -> Promise:
    """Return the promise of a bundle of this network in this form on this machine.

    Where it is run otherwise than it was thinned for, nothing was promised, and it says so.
    """
    if thinned is None or not is_network(workspace, thinned, architecture):
        return Promise()
    if not is_run_so(thinned, target, form):
        if thinned.here and form.runs_here:
            print(
                f"warning: it was thinned for {thinned.target_fps:g} FPS in {thinned.runtime} "
                f"{thinned.precision}, --threads {thinned.threads}; this bundle runs in "
                f"{form.runtime} {form.precision}, --threads {target.threads}"
                f"{', --raw' * form.raw}{', --dynamic-batch' * form.dynamic_batch}: "
                "neither target nor prediction is compared",
                file=sys.stderr,
            )
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
    head = Architecture.load(workspace.architecture).head
    if architecture.family == "heatdetr" and architecture.head != head:
        print(
            f"warning: it was thinned with --head {head}, this bundle has --head "
            f"{architecture.head}: its target is compared, its prediction is not",
            file=sys.stderr,
        )
        return Promise(thinned)
    return Promise(thinned, _table_of(workspace, thinned, target))


def is_run_so(thinned: Thinned, target: Target, form: Form) -> bool:
    """Return whether a bundle of this form runs here as the network was thinned to run."""
    return (
        not (form.raw or form.dynamic_batch)
        and form.runs_here
        and (thinned.runtime, thinned.threads) == (form.runtime, target.threads)
        and thinned.precision == form.precision
    )


def is_network(workspace: Workspace, thinned: Thinned, architecture: AnyArchitecture) -> bool:
    """Return whether a thinning was of this network, with box voting or without."""
    if architecture.family != "heatdetr" or not workspace.architecture.exists():
        return False
    found = Architecture.load(workspace.architecture)
    if {architecture.head, found.head} == set(get_args(NMSHead)):
        architecture = architecture.with_(head=found.head)
    return (
        is_thinned(architecture, found)
        # Another one lies there where a thinning was ended before it was recorded.
        and (found.widths, found.blocks) == (thinned.widths, thinned.blocks)
        and found.global_block == thinned.global_block
    )


def broken_promises(fps: float, predicted: float | None, target_fps: float | None) -> str:
    """Return which promise a measured frame rate breaks, or an empty string."""
    if target_fps is not None and fps < target_fps:
        return f"{fps:.2f} FPS measured, target {target_fps:g}: {run_again()}"
    if predicted is not None and not RATIO_BOUNDS[0] <= fps / predicted <= RATIO_BOUNDS[1]:
        return (
            f"{fps:.2f} FPS measured, {predicted:.2f} predicted (ratio {fps / predicted:.3f}, "
            f"allowed {RATIO_BOUNDS[0]} to {RATIO_BOUNDS[1]}): {run_again()}"
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
        "target is compared, its prediction is not; heat thin measures anew",
        file=sys.stderr,
    )
    return None
