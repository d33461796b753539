"""The result of `heat thin`: the network found, or the report of a target out of reach."""

import math
from dataclasses import replace

from latency_tables.pricing import SUSTAINED
from latency_tables.store import find_table
from supernet.errors import PromiseError

from ..tables import table_path
from ..workspace import Workspace
from .candidates import CandidateSearch
from .floor import advice, check_ways, smaller_size
from .greedy import Trial, score_move
from .ledger import write_ledger
from .moves import importances
from .search import Chain
from .settle import Settled
from .source import Source
from .thinned import OfDevice, Thinned


def write_moves(workspace: Workspace, search: CandidateSearch, found: Settled) -> None:
    """Write the ledger of the moves that led to the result."""
    chain = search.chain
    trials = chain.ledger(found.index) + _last_trials(chain, found)
    write_ledger(workspace.ledger, trials, chain.space, chain.logits)


def _last_trials(chain: Chain, found: Settled) -> list[Trial]:
    """Score the moves that fitted the result to its target."""
    state, trials = chain.states[found.index], []
    for number, move in enumerate(found.moves):
        trial = score_move(
            found.index + number,
            state,
            move,
            chain.logits,
            chain.rules,
            chain.latency_ms,
            chain.ap_drop,
        )
        trials.append(replace(trial, chosen=True, reason="final adjustment to the target"))
        state = move.after
    return trials


def result_of(
    workspace: Workspace, search: CandidateSearch, found: Settled, source: Source, *, trust: bool
) -> Thinned:
    """Return the record: what was asked for, predicted, measured, and by which table."""
    goal, target = search.goals[0], search.candidate.targets[0]
    limits, table = goal.limits, goal.prices.table
    architecture = search.architecture(found.state)
    predicted = goal.prices.cost(found.state)
    measured = found.measured[0] if found.measured else None
    first = table.predict_ms(architecture)
    weights = importances(search.chain.space, search.chain.logits)
    where = find_table(workspace.tables, target, architecture.input_size, trust=trust)
    return Thinned(
        target_fps=limits.fps,  # as asked for: `heat build` and `heat export` compare with it
        max_latency_ms=limits.max_latency_ms,
        percentile=limits.percentile,
        max_memory_mb=limits.max_memory_mb,
        max_size_mb=limits.max_size_mb,
        predicted_fps=round(predicted.fps, 3),
        predicted_ms=round(1000.0 / predicted.fps, 4),
        table_ms=round(first, 4),
        predicted_size_mb=round(predicted.size_mb, 2),
        predicted_memory_mb=_rounded(predicted.memory_mb),
        measured_fps=round(measured.fps, 3) if measured else None,
        measured_fps_now=round(measured.fps_now, 3) if measured else None,
        measured_fps_typical=round(measured.typical_fps, 3) if measured else None,
        measured_fps_best=round(measured.best_fps, 3) if measured else None,
        predicted_sd=round(predicted.sd, 4),
        sustained_share=SUSTAINED,
        reference_ms=table.reference_ms,
        measured_ms=round(1000.0 / measured.fps, 4) if measured else None,
        measured_p50_ms=round(measured.p50_ms, 4) if measured else None,
        measured_p95_ms=round(measured.p95_ms, 4) if measured else None,
        measured_size_mb=round(measured.size_mb, 2) if measured else None,
        measured_memory_mb=_rounded(measured.memory_mb) if measured else None,
        met=not found.broken,
        speedup=round(found.speedup, 4) if measured else None,
        source="estimated" if table.estimated else "measured",
        here=target.here,
        device=table.conditions.device,
        requested=target.device.name,
        model=table.conditions.model,
        runtime=target.runtime,
        runtime_version=table.conditions.runtime_version,
        precision=table.conditions.precision,
        threads=target.threads,
        spinning=target.spinning,
        pinning=target.pinning,
        input_size=architecture.input_size,
        architecture=None if found.at_floor else str(workspace.architecture),
        widths=architecture.widths,
        blocks=architecture.blocks,
        global_block=architecture.global_block,
        positions=found.state.positions(),
        space=search.candidate.space,
        importance={name: round(m, 4) for name, m in weights.items()},
        ranked_by=source.name,
        ap_drop_by=search.evaluator.meaning,
        proxies={v.proxy: _rounded(v.spearman, 3) for v in search.evaluator.verdicts},
        table=str(where or table_path(workspace, table)),
        table_factor=round(table.calibration.factor, 4),
        held_out_error=table.calibration.held_out_error,
        margin=round(goal.margin(corrected=False), 4),
        measurements=found.measurements,
        steps=found.index + len(found.moves),
        devices=tuple(
            OfDevice(
                other.prices.table.conditions.stem,
                other.limits.fps,
                round(other.prices.cost(found.state).fps, 3),
                round(cost.fps, 3) if cost else None,
            )
            for other, cost in zip(
                search.goals, found.measured or [None] * len(search.goals), strict=True
            )
        ),
    )


def _rounded(value: float, digits: int = 1) -> float | None:
    return None if math.isnan(value) else round(value, digits)


def floor_error(search: CandidateSearch, found: Settled, result: Thinned) -> PromiseError:
    """Return an error with what the smallest network reaches, and other ways that reach more.

    Where the device is not at hand nothing is measured, and what is offered is marked as estimated.
    """
    target, limits = search.candidate.targets[0], search.candidate.limits[0]
    architecture = search.architecture(found.state)
    height, width = architecture.input_size
    result = replace(result, out_of_reach=True)
    fps = result.fps
    runs = "runs at" if result.measured_fps else "is predicted to run at"
    message = (
        f"the smallest network of the space {runs} {fps:.1f} FPS on {result.device} at "
        f"{height}x{width}, {target.threads} thread(s), {target.runtime} {target.precision} "
        f"({'; '.join(found.broken)})"
    )
    measured = found.measured[0] if found.measured else None
    if limits.load(measured or search.goals[0].predict(found.state)) <= 1.0:
        return PromiseError(f"the limits are out of reach: {message}", result.to_dict())
    if measured is not None:
        ways = check_ways(architecture, target, limits, fps)
        checked = tuple(replace(way, fps=round(way.fps, 3)) for way in ways)
        result = replace(result, checked_ways=checked)
        message += f"; {advice(ways)}"
    else:
        smaller = smaller_size((height, width), fps / limits.fps)
        if smaller is not None:
            message += f"; try --input-size {smaller[0]}x{smaller[1]} (estimated)"
    return PromiseError(f"{limits.fps:g} FPS is out of reach: {message}", result.to_dict())
