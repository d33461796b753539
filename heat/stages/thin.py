"""`heat thin`: cut the supernet down until the network runs at the target on this device."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from deploy.bench import Speed, measure_speed
from latency_tables.devices import Target
from latency_tables.profile import fill, network_job, open_table
from latency_tables.table import Conditions
from supernet.architecture import Architecture
from supernet.checkpoint import load_weights, read_info
from supernet.coco import DetectionSet
from supernet.errors import PromiseError, UserError
from supernet.supernet import SearchSpace, Supernet

from ..accuracy import LossDrop
from ..ledger import write_ledger
from ..thinning import Logits, State, ThinningRules, Trial, prior_logits, removed_mass, thin_step
from ..workspace import Workspace
from .profile import ensure_calibrated, warn

ApDrop = Literal["auto", "loss", "mass"]

MAX_CORRECTIONS = 12
"""How often a measurement may rescale the table."""
RATIO_BOUNDS = (0.9, 1.1)
"""Allowed measured / predicted frame rate."""


def thin(
    workspace: Workspace,
    target: Target,
    target_fps: float,
    space: SearchSpace,
    *,
    data: DetectionSet | None = None,
    ap_drop: ApDrop = "auto",
    rules: ThinningRules | None = None,
) -> dict[str, Any]:
    """Search, build the chosen network, measure it; raise `PromiseError` if the target is missed.

    A network that turns out slower or much faster than predicted rescales the table, and the
    search goes on or begins again.

    With a trained supernet in the workspace its logits rank the moves; without one the prior
    does, and the result says so.
    """
    check_target(target_fps)
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
    table = open_table(workspace.tables, target, space.template.input_size)
    ensure_calibrated(workspace, table, space)

    def save() -> None:
        table.save(workspace.tables)

    known: dict[tuple[object, ...], float] = {}

    def latency_ms(state: State) -> float:
        architecture = state.architecture(space, logits)
        key = (architecture.widths, architecture.blocks)
        if key not in known:
            fill(table, architecture.entries().values(), save=save)
            known[key] = table.sum_ms(architecture)
        return known[key] * factor

    factor = table.calibration.factor
    drop, proxy = _evaluator(supernet, space, data, logits, ap_drop)
    state = State.full(space)
    ledger: list[Trial] = []
    steps = 0
    corrections = 0
    while True:
        at_floor = False
        while 1000.0 / latency_ms(state) < target_fps:
            trials = thin_step(steps, state, logits, rules, latency_ms, drop)
            if not trials:
                at_floor = True
                break
            ledger.extend(trials)
            steps += 1
            chosen = next(trial for trial in trials if trial.chosen)
            state = chosen.move.after
            _say(chosen, target_fps)
        architecture = state.architecture(space, logits)
        speed = measure_network(architecture, table.conditions)
        predicted_fps = 1000.0 / latency_ms(state)
        if at_floor and speed.fps < target_fps:
            write_ledger(workspace.ledger, ledger, space, logits)
            raise _floor_error(target, target_fps, architecture, predicted_fps, speed, steps)
        ratio = speed.fps / predicted_fps
        too_slow, too_fast = speed.fps < target_fps, ratio > RATIO_BOUNDS[1]
        if not (too_slow or too_fast) or corrections == MAX_CORRECTIONS:
            break
        corrections += 1
        factor /= ratio
        if too_fast:
            # More was cut than needed: begin again with the corrected table.
            state, ledger, steps = State.full(space), [], 0
        print(
            f"measured {speed.fps:.2f} FPS where {predicted_fps:.2f} was predicted: the table is "
            f"rescaled and thinning {'begins again' if too_fast else 'goes on'}",
            file=sys.stderr,
        )
    write_ledger(workspace.ledger, ledger, space, logits)
    architecture.save(workspace.architecture)
    result = {
        "target_fps": target_fps,
        "predicted_fps": round(predicted_fps, 3),
        "predicted_ms": round(1000.0 / predicted_fps, 4),
        "measured_fps": round(speed.fps, 3),
        "measured_ms": round(speed.ms, 4),
        "met": speed.fps >= target_fps,
        "device": target.name,
        "requested": target.device.name,
        "model": target.detected.model,
        "runtime": target.runtime,
        "runtime_version": table.conditions.runtime_version,
        "precision": table.conditions.precision,
        "threads": target.threads,
        "input_size": list(architecture.input_size),
        "architecture": str(workspace.architecture),
        "widths": list(architecture.widths),
        "blocks": list(architecture.blocks),
        "positions": state.positions(),
        "ranked_by": "supernet" if supernet is not None else "prior (no supernet trained)",
        "ap_drop_by": proxy,
        "table": str(workspace.tables / f"{table.conditions.stem}.csv"),
        "table_factor": round(factor, 4),
        "held_out_error": table.calibration.held_out_error,
        "corrections": corrections,
        "steps": steps,
        "seconds": round(time.monotonic() - started, 1),
    }
    workspace.record("thin", result)
    if not result["met"]:
        raise PromiseError(
            f"{speed.fps:.2f} FPS measured after {corrections} corrections, target {target_fps:g}: "
            "this machine is too noisy to keep the promise now; run heat thin again",
            result,
        )
    return result


def check_target(target_fps: float) -> None:
    """Refuse targets that are no frame rate."""
    if not (math.isfinite(target_fps) and target_fps > 0):
        raise UserError(f"--target-fps {target_fps:g}: a positive number of frames per second")


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


def measure_network(architecture: Architecture, conditions: Conditions) -> Speed:
    """Measure the deployed form of an architecture, with random weights and a busy head."""
    job = network_job(architecture, conditions)
    return measure_speed(job.session, job.feeds)


def _floor_error(
    target: Target,
    target_fps: float,
    smallest: Architecture,
    predicted_fps: float,
    speed: Speed,
    steps: int,
) -> PromiseError:
    """Say what the smallest network reaches, and what would reach the target."""
    height, width = smallest.input_size
    # Nearly all cost is proportional to the number of pixels.
    shrink = math.sqrt(speed.fps / target_fps)
    sides = [int(side * shrink) // 64 * 64 for side in (height, width)]
    other = "openvino" if target.runtime == "onnxruntime" else "onnxruntime"
    ways = [f"--input-size {sides[0]}x{sides[1]} (estimated)"] if min(sides) >= 64 else []
    if target.threads < target.detected.cores:
        ways.append(f"--threads {target.detected.cores}")
    ways.append(f"--runtime {other}")
    result = {
        "target_fps": target_fps,
        "predicted_fps": round(predicted_fps, 3),
        "measured_fps": round(speed.fps, 3),
        "met": False,
        "architecture": None,
        "floor": {"widths": list(smallest.widths), "blocks": list(smallest.blocks)},
        "steps": steps,
    }
    return PromiseError(
        f"{target_fps:g} FPS is out of reach: the smallest network of the space runs at "
        f"{speed.fps:.1f} FPS on {target.name} at {height}x{width}, {target.threads} thread(s), "
        f"{target.runtime}; try {' or '.join(ways)}",
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
