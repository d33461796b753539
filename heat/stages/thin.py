"""`heat thin`: cut the supernet down until the network runs at the target on this device."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from deploy.bench import measure_speed
from latency_tables.batch import Bench, load
from latency_tables.conditions import Conditions
from latency_tables.costs import size_mb
from latency_tables.devices import Target
from latency_tables.fresh import peak_mb
from latency_tables.lock import only_one
from latency_tables.models import write_network
from latency_tables.plan import LAZY, Checks
from latency_tables.profile import FRESH_COMMAND, fill, open_bench
from latency_tables.store import find_table, open_table
from latency_tables.table import LatencyTable
from supernet.architecture import Architecture
from supernet.checkpoint import load_weights, read_info
from supernet.coco import DetectionSet
from supernet.errors import PromiseError, UserError
from supernet.supernet import SearchSpace, Supernet

from ..accuracy import LossDrop
from ..ledger import write_ledger
from ..limits import Cost, Limits, Pricer
from ..thinning import Logits, State, ThinningRules, Trial, prior_logits, removed_mass, thin_step
from ..workspace import Workspace
from .profile import check_table, table_path, warn

ApDrop = Literal["auto", "loss", "mass"]

MAX_CORRECTIONS = 12
"""How often a measurement may rescale the table."""
MAX_MARGIN = 0.1
"""Largest share that the table's error may add to the target."""
RATIO_BOUNDS = (0.9, 1.1)
"""Allowed measured / predicted frame rate."""


def thin(
    workspace: Workspace,
    target: Target,
    limits: Limits,
    space: SearchSpace,
    *,
    data: DetectionSet | None = None,
    ap_drop: ApDrop = "auto",
    rules: ThinningRules | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Search, build the chosen network, measure it; raise `PromiseError` if a limit is missed.

    A network that turns out slower or much faster than predicted rescales the table, and the
    search goes on or begins again. A trusted table of a device that is not here cannot be checked
    by measuring: the result says so.

    With a trained supernet in the workspace its logits rank the moves; without one the prior
    does, and the result says so.
    """
    started = time.monotonic()
    warn(target)
    supernet = load_supernet(workspace)
    if supernet is not None:
        _check_fits(supernet, space, workspace)
        space = _with_global_block(supernet, target)
    logits: Logits = supernet.logits() if supernet is not None else prior_logits(space)
    if rules is None:
        # Without training no stage is known to matter less: every stage's moves are weighed.
        rules = ThinningRules(stage_rule="mean" if supernet is not None else "all")
    size = space.template.input_size
    table = open_table(workspace.tables, target, size, trust=trust)
    found = find_table(workspace.tables, target, size, trust=trust)
    where = found or table_path(workspace, table)
    with only_one(table_path(workspace, table)):
        if target.here:
            _ensure_checked(workspace, table, space, limits)
        elif limits.max_memory_mb is not None and table.memory is None:
            raise UserError(f"{table.conditions.stem} has no memory model: leave --max-memory-mb")
        ensure = _lazy_filler(workspace, table) if target.here else table.sum_ms
        prices = Pricer(table, space, logits, ensure)
        drop, proxy = _evaluator(supernet, space, data, logits, ap_drop)
        outcome = _search(target, limits, prices, rules, drop, measure=target.here)
    write_ledger(workspace.ledger, outcome.ledger, space, logits)
    architecture = outcome.state.architecture(space, logits)
    predicted, measured = prices.cost(outcome.state), outcome.measured
    broken = limits.broken(measured or predicted)
    result: dict[str, Any] = {
        "target_fps": limits.target_fps,
        "max_memory_mb": limits.max_memory_mb,
        "max_size_mb": limits.max_size_mb,
        "predicted_fps": round(predicted.fps, 3),
        "predicted_ms": round(1000.0 / predicted.fps, 4),
        "predicted_size_mb": round(predicted.size_mb, 2),
        "predicted_memory_mb": _rounded(predicted.memory_mb),
        "measured_fps": round(measured.fps, 3) if measured else None,
        "measured_ms": round(1000.0 / measured.fps, 4) if measured else None,
        "measured_size_mb": round(measured.size_mb, 2) if measured else None,
        "measured_memory_mb": _rounded(measured.memory_mb) if measured else None,
        "met": not broken,
        "source": "estimated" if table.estimated else "measured",
        "here": target.here,
        "device": table.conditions.device,
        "requested": target.device.name,
        "model": table.conditions.model,
        "runtime": target.runtime,
        "runtime_version": table.conditions.runtime_version,
        "precision": table.conditions.precision,
        "threads": target.threads,
        "input_size": list(architecture.input_size),
        "architecture": None if outcome.at_floor else str(workspace.architecture),
        "widths": list(architecture.widths),
        "blocks": list(architecture.blocks),
        "positions": outcome.state.positions(),
        "ranked_by": "supernet" if supernet is not None else "prior (no supernet trained)",
        "ap_drop_by": proxy,
        "table": str(where),
        "table_factor": round(prices.speed * table.calibration.factor, 4),
        "held_out_error": table.calibration.held_out_error,
        "margin": round(_margin(table), 4),
        "corrections": outcome.corrections,
        "steps": outcome.steps,
        "seconds": round(time.monotonic() - started, 1),
    }
    if outcome.at_floor:
        raise _floor_error(target, limits, result, broken)
    architecture.save(workspace.architecture)
    workspace.record("thin", result)
    if broken:
        raise PromiseError(
            f"{'; '.join(broken)} after {outcome.corrections} corrections: this machine is too "
            "noisy to keep the promise now; run heat thin again",
            result,
        )
    if measured is None:
        print(
            f"{predicted.fps:.1f} FPS {'ESTIMATED' if table.estimated else 'by a table'} for "
            f"{table.conditions.device}, which is not here: measured nowhere",
            file=sys.stderr,
        )
    return result


@dataclass(slots=True)
class _Outcome:
    """Where a search ended."""

    state: State
    ledger: list[Trial]
    steps: int = 0
    corrections: int = 0
    measured: Cost | None = None
    at_floor: bool = False


def _search(
    target: Target,
    limits: Limits,
    prices: Pricer,
    rules: ThinningRules,
    drop: Callable[[State, State], float],
    *,
    measure: bool,
) -> _Outcome:
    """Thin until the limits are kept, by prediction and then by measurement."""
    out = _Outcome(State.full(prices.space), [])
    # The table's own error is the margin, until a measured network has corrected the table.
    margin = _margin(prices.table)
    while True:
        out.at_floor = False
        while limits.broken(prices.cost(out.state), margin):
            trials = thin_step(out.steps, out.state, prices.logits, rules, prices.latency_ms, drop)
            if not trials:
                out.at_floor = True
                break
            out.ledger.extend(trials)
            out.steps += 1
            chosen = next(trial for trial in trials if trial.chosen)
            out.state = chosen.move.after
            _say(chosen, limits.target_fps)
        if not measure:
            out.at_floor = out.at_floor and bool(limits.broken(prices.cost(out.state)))
            return out
        architecture = out.state.architecture(prices.space, prices.logits)
        out.measured = measure_network(architecture, prices.table.conditions)
        predicted = prices.cost(out.state)
        broken = limits.broken(out.measured)
        if out.at_floor and broken:
            return out
        out.at_floor = False
        ratio = out.measured.fps / predicted.fps
        too_fast = ratio > RATIO_BOUNDS[1]
        if not (broken or too_fast) or out.corrections == MAX_CORRECTIONS:
            return out
        out.corrections += 1
        margin = 0.0
        prices.speed /= ratio
        if not math.isnan(predicted.memory_mb):
            prices.memory *= out.measured.memory_mb / predicted.memory_mb
        if too_fast:
            # More was cut than needed: begin again with the corrected table.
            out.state, out.ledger, out.steps = State.full(prices.space), [], 0
        print(
            f"measured {out.measured.fps:.2f} FPS where {predicted.fps:.2f} was predicted: the "
            f"table is rescaled and thinning {'begins again' if too_fast else 'goes on'}",
            file=sys.stderr,
        )


def _margin(table: LatencyTable) -> float:
    """Return the share by which the prediction must pass the target: the table's own error."""
    return min(table.calibration.held_out_error or 0.0, MAX_MARGIN)


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 1)


def _ensure_checked(
    workspace: Workspace, table: LatencyTable, space: SearchSpace, limits: Limits
) -> None:
    """Calibrate the table; with a memory limit, its memory too."""
    if limits.max_memory_mb is not None and table.memory is None:
        check_table(workspace, table, space, Checks())
    elif not table.calibration.anchors:
        check_table(workspace, table, space, LAZY)


def _lazy_filler(workspace: Workspace, table: LatencyTable) -> Callable[[Architecture], object]:
    """Return what measures the entries a table lacks, with a runtime opened once."""
    bench: Bench | None = None

    def ensure(architecture: Architecture) -> None:
        nonlocal bench
        missing = table.missing(architecture.entries())
        if missing:
            bench = bench or open_bench(table.conditions)
            fill(
                table,
                missing,
                bench=bench,
                max_rounds=LAZY.max_rounds,
                save=lambda: table.save(workspace.tables),
            )

    return ensure


def _with_global_block(supernet: Supernet, target: Target) -> SearchSpace:
    """Return the supernet's space with its global block decided: cw on CPUs (spec section 7)."""
    if not supernet.space.global_choice:
        return supernet.space
    kind = "cw" if target.device.kind == "cpu" else supernet.best_global_block()
    template = supernet.space.template.with_(global_block=kind)
    return replace(supernet.space, template=template, global_choice=False)


def _check_fits(supernet: Supernet, space: SearchSpace, workspace: Workspace) -> None:
    """Refuse to thin a supernet that was trained for something else than was asked for."""
    own, asked = supernet.space.template, space.template
    for what, mine, wanted in (
        ("input size", own.input_size, asked.input_size),
        ("number of classes", own.num_classes, asked.num_classes),
        ("widths", own.widths, asked.widths),
    ):
        if mine != wanted:
            raise UserError(
                f"the supernet in {workspace.supernet} has {what} {mine}, asked for is {wanted}: "
                "use the data and options it was trained with, or another --out"
            )


def load_supernet(workspace: Workspace) -> Supernet | None:
    """Return the workspace's supernet if one is trained to its end."""
    path = workspace.supernet / "weights.safetensors"
    if not path.exists():
        return None
    info = read_info(path)
    if info.epoch < info.epochs:
        print(
            f"warning: the supernet stands at epoch {info.epoch} of {info.epochs} "
            "(heat supernet --resume goes on)",
            file=sys.stderr,
        )
    supernet = Supernet(SearchSpace.from_json(info.description, str(path)))
    load_weights(path, supernet)
    return supernet.eval()


def _evaluator(
    supernet: Supernet | None,
    space: SearchSpace,
    data: DetectionSet | None,
    logits: Logits,
    wanted: ApDrop,
) -> tuple[Callable[[State, State], float], str]:
    if wanted == "loss" and (supernet is None or data is None):
        raise UserError("--ap-drop loss needs a trained supernet and --data: heat supernet first")
    if wanted != "mass" and supernet is not None and data is not None:
        return LossDrop(supernet, space, data, logits), "rise of the detection loss, percent"
    return (
        lambda before, after: removed_mass(before, after, logits),
        "share of importance mass, percent",
    )


def measure_network(architecture: Architecture, conditions: Conditions) -> Cost:
    """Measure the deployed form of an architecture, with random weights and a busy head."""
    model = write_network(architecture, conditions.setting)
    job = load(model, conditions.setting)
    speed = measure_speed(job.session, job.feeds)
    del job
    if not model.onnx:  # torch deploys no file
        return Cost(speed.fps, size_mb(architecture), math.nan)
    memory = peak_mb(model, conditions.setting, FRESH_COMMAND)
    return Cost(speed.fps, len(model.onnx) / 2**20, memory)


def _floor_error(
    target: Target, limits: Limits, result: dict[str, Any], broken: list[str]
) -> PromiseError:
    """Say what the smallest network reaches, and what would reach the target."""
    height, width = result["input_size"]
    fps = result["measured_fps"] or result["predicted_fps"]
    # Nearly all cost is proportional to the number of pixels.
    shrink = math.sqrt(min(1.0, fps / limits.target_fps))
    sides = [int(side * shrink) // 64 * 64 for side in (height, width)]
    other = "openvino" if target.runtime == "onnxruntime" else "onnxruntime"
    ways = [f"--input-size {sides[0]}x{sides[1]} (estimated)"] if min(sides) >= 64 else []
    if target.threads < target.detected.cores:
        ways.append(f"--threads {target.detected.cores}")
    ways.append(f"--runtime {other}")
    result["floor"] = {"widths": result.pop("widths"), "blocks": result.pop("blocks")}
    return PromiseError(
        f"{limits.target_fps:g} FPS is out of reach: the smallest network of the space runs at "
        f"{fps:.1f} FPS on {result['device']} at {height}x{width}, {target.threads} thread(s), "
        f"{target.runtime} ({'; '.join(broken)}); try {' or '.join(ways)}",
        result,
    )


def _say(trial: Trial, target_fps: float) -> None:
    place = f"S{trial.move.stage}"
    if trial.move.position is not None:
        place += f" position {trial.move.position}"
    print(
        f"step {trial.step}: {trial.move.kind} {place}: {trial.fps:.2f} FPS "
        f"(target {target_fps:g}), AP_drop {trial.ap_drop:.3f}",
        file=sys.stderr,
    )
