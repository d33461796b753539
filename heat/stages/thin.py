"""`heat thin`: cut the supernet down until the network runs at the target on this device."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from latency_tables.batch import Bench
from latency_tables.devices import Target
from latency_tables.lock import only_one
from latency_tables.plan import LAZY, Checks
from latency_tables.profile import fill, open_bench
from latency_tables.store import find_table, open_table
from latency_tables.table import LatencyTable
from supernet.architecture import Architecture
from supernet.atomic import replacing
from supernet.coco import DetectionSet
from supernet.errors import PromiseError, UserError
from supernet.supernet import SearchSpace

from ..accuracy import Readings
from ..frontier import write_frontier
from ..journal import Journal, fingerprint
from ..ledger import write_ledger
from ..limits import Cost, Limits, Pricer, worst_ms
from ..proxies import ApDropBy, Evaluator, choose
from ..search import Chain, Method
from ..settle import Goal, Settled, settle
from ..source import Source, check_fits, load_source, with_global_block
from ..thinning import Logits, State, ThinningRules, Trial, importances, weigh
from ..workspace import Workspace
from .measuring import measure_network
from .profile import check_table, table_path, warn


@dataclass(frozen=True, slots=True)
class Form:
    """A way to deploy the network: an input size, and a runtime and precision on each device."""

    space: SearchSpace
    """Its template has the input size."""
    targets: tuple[Target, ...]
    limits: tuple[Limits, ...]
    """What is wanted on each device."""

    def __str__(self) -> str:
        """Return it in words."""
        height, width = self.space.template.input_size
        where = ", ".join(f"{t.device.name} {t.runtime} {t.precision}" for t in self.targets)
        return f"{height}x{width} {where}"


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """An Optuna study in the greedy search's place."""

    method: Method
    trials: int
    storage: str | None
    """Journal file or database URL; None keeps it in memory."""


def thin(
    workspace: Workspace,
    forms: Sequence[Form],
    *,
    data: DetectionSet | None = None,
    ap_drop: ApDropBy = "auto",
    rules: ThinningRules | None = None,
    trust: bool = False,
    frontier: bool = False,
    study: StudyPlan | None = None,
) -> dict[str, Any]:
    """Search, build the chosen network, measure it; raise `PromiseError` if a limit is missed.

    Of several forms the one whose network reads best is taken; they all come from one supernet.
    The measured network must run between the target and 5 % above it; one that does not corrects
    the table's predictions, and the next is chosen. A trusted table of a device that is not here
    cannot be checked by measuring: the result says so. With `frontier` the chain of moves is
    followed to its floor and written out: it holds the network of every other target. A `study`
    starts from the greedy result and may find a better one.
    """
    started = time.monotonic()
    for target in {target.name: target for form in forms for target in form.targets}.values():
        warn(target)
    source = load_source(workspace, forms[0].space)
    if len(forms) > 1 and (source.supernet is None or data is None):
        raise UserError(
            "which input size or precision is best is read on images: give --data and train a "
            "supernet first, or one --input-size and one --precision"
        )
    if rules is None:
        # Without training no stage is known to matter less: every stage's moves are weighed.
        rules = ThinningRules(stage_rule="mean" if source.supernet is not None else "all")
    with ExitStack() as stack:
        searches = [
            stack.enter_context(_open(workspace, form, source, data, ap_drop, rules, trust))
            for form in forms
        ]
        search = _best(searches) if len(searches) > 1 else searches[0]
        if study is not None:
            _study(workspace, search, study)
        found = settle(search.chain, search.goals)
        if frontier:
            while search.chain.extend():
                pass
            prices, unit = search.goals[0].prices, search.evaluator.meaning
            write_frontier(workspace, search.chain, prices, unit)
        result = _result(workspace, search, found, source, trust=trust)
        _write(workspace, search, found)
    result["seconds"] = round(time.monotonic() - started, 1)
    if found.at_floor:
        raise _floor_error(search, found, result)
    search.architecture(found.state).save(workspace.architecture)
    workspace.record("thin", result)
    search.measured.forget()
    if found.broken:
        raise PromiseError(
            f"{'; '.join(found.broken)} after {found.measurements} measurements: this machine is "
            "too noisy to keep the promise now; run heat thin again",
            result,
        )
    if result["measured_fps"] is None:
        print(
            f"{result['predicted_fps']:.1f} FPS "
            f"{'ESTIMATED' if result['source'] == 'estimated' else 'by a table'} for "
            f"{result['device']}, which is not here: measured nowhere",
            file=sys.stderr,
        )
    return result


@dataclass(slots=True)
class _Search:
    """The search of one form."""

    form: Form
    chain: Chain
    goals: list[Goal]
    evaluator: Evaluator
    readings: Readings | None
    measured: Journal

    def architecture(self, state: State) -> Architecture:
        return state.architecture(self.form.space, self.chain.logits)


@contextmanager
def _open(
    workspace: Workspace,
    form: Form,
    source: Source,
    data: DetectionSet | None,
    ap_drop: ApDropBy,
    rules: ThinningRules,
    trust: bool,
) -> Iterator[_Search]:
    """Open a form's tables, each for this process alone, and its readings."""
    space = form.space
    if source.supernet is not None:
        check_fits(source.supernet, space, workspace)
        space = replace(
            with_global_block(source.supernet, form.targets[0]), template=space.template
        )
        form = replace(form, space=space)
    readings = None
    if source.supernet is not None and data is not None:
        of = fingerprint(
            supernet=source.digest, data=str(data.root), images=len(data.records), kind="readings"
        )
        journal = Journal(workspace.root / "thin" / "readings.jsonl", of)
        readings = Readings(source.supernet, space, data, source.logits, journal)
    evaluator = choose(ap_drop, readings, space, source.logits, rules)
    run = fingerprint(form=str(form), limits=[asdict(limit) for limit in form.limits])
    measured = Journal(workspace.root / "thin" / "measured.jsonl", run)
    with ExitStack() as locks:
        goals = []
        for target, limits in zip(form.targets, form.limits, strict=True):
            table = open_table(workspace.tables, target, space.template.input_size, trust=trust)
            locks.enter_context(only_one(table_path(workspace, table)))
            goals.append(_goal(workspace, table, target, limits, space, source.logits, measured))
        latency_ms = worst_ms([goal.prices for goal in goals], form.limits)
        chain = Chain(space, source.logits, rules, latency_ms, evaluator.drop)
        chain.on_step = _follow(workspace, chain, form.limits[0].fps)
        yield _Search(form, chain, goals, evaluator, readings, measured)


def _goal(
    workspace: Workspace,
    table: LatencyTable,
    target: Target,
    limits: Limits,
    space: SearchSpace,
    logits: Logits,
    journal: Journal,
) -> Goal:
    """Calibrate a table where its device is at hand, and say how its networks are measured."""
    if not target.here:
        if limits.max_memory_mb is not None and table.memory is None:
            raise UserError(f"{table.conditions.stem} has no memory model: leave --max-memory-mb")
        return Goal(Pricer(table, space, logits, table.sum_ms), limits, None)
    if limits.max_memory_mb is not None and table.memory is None:
        check_table(workspace, table, space, Checks())
    elif not table.calibration.anchors:
        check_table(workspace, table, space, LAZY)
    memory = limits.max_memory_mb is not None

    def measure(state: State) -> Cost:
        architecture = state.architecture(space, logits)
        block = f" {state.global_block}" if state.global_block else ""
        key = f"{table.conditions.stem} {architecture.widths} {architecture.blocks}{block}"
        found = journal.reading(
            key,
            lambda: asdict(
                measure_network(
                    architecture,
                    table.conditions.setting,
                    reference_ms=table.reference_ms,
                    memory=memory,
                )
            ),
        )
        return Cost(**found)

    return Goal(Pricer(table, space, logits, _lazy_filler(workspace, table)), limits, measure)


def _best(searches: Sequence[_Search]) -> _Search:
    """Return the form whose predicted network reads best on the held-out images."""
    found: list[tuple[_Search, float, float]] = []
    for search in searches:
        assert search.readings is not None
        predicted = [replace(goal, measure=None) for goal in search.goals]
        settled = settle(search.chain, predicted)
        if settled.broken:
            print(f"{search.form}: out of reach ({'; '.join(settled.broken)})", file=sys.stderr)
            continue
        loss, ap = search.readings.quality(settled.state, search.form.targets[0].precision)
        print(f"{search.form}: loss {loss:.3f}, AP {ap:.2f}", file=sys.stderr)
        found.append((search, loss, ap))
    if not found:
        return searches[0]
    if all(search.readings is not None and search.readings.ap_tells for search, _, _ in found):
        return max(found, key=lambda reading: reading[2])[0]
    return min(found, key=lambda reading: reading[1])[0]


def _study(workspace: Workspace, search: _Search, plan: StudyPlan) -> None:
    """Replace the chain's way to the target by what an Optuna study finds."""
    from ..study import Problem, best_state
    from ..study import search as run

    predicted = [replace(goal, measure=None) for goal in search.goals]
    greedy = settle(search.chain, predicted)
    if greedy.broken:
        return  # the floor is out of reach, whoever searches
    full = search.chain.states[0]
    margin = max(goal.margin(corrected=False) for goal in search.goals)
    problem = Problem(
        space=search.form.space,
        logits=search.chain.logits,
        rules=search.chain.rules,
        latency_ms=search.chain.latency_ms,
        lost=lambda state: search.chain.ap_drop(full, state),
        max_ms=1000.0 / search.form.limits[0].fps / (1 + margin),
        evaluator=search.evaluator.name,
    )
    study = run(
        problem, plan.method, trials=plan.trials, starts=[greedy.state], storage=plan.storage
    )
    with replacing(workspace.root / "thin" / "study.csv") as temporary:
        study.trials_dataframe().to_csv(temporary, index=False)
    best = best_state(study, problem)
    if best is not None:
        search.chain.states[1:] = [best]
        search.chain.trials[:] = [[]]
        search.chain.at_floor = False


def _follow(workspace: Workspace, chain: Chain, fps: float) -> Callable[[list[Trial]], None]:
    """Return what keeps the ledger and says each step."""

    def on_step(trials: list[Trial]) -> None:
        chosen = next(trial for trial in trials if trial.chosen)
        place = f"S{chosen.move.stage}"
        if chosen.move.position is not None:
            place += f" position {chosen.move.position}"
        print(
            f"step {chosen.step}: {chosen.move.kind} {place}: {chosen.fps:.2f} FPS "
            f"(target {fps:g}), AP_drop {chosen.ap_drop:.3f}",
            file=sys.stderr,
        )
        write_ledger(workspace.ledger, chain.ledger(len(chain.trials)), chain.space, chain.logits)

    return on_step


def _write(workspace: Workspace, search: _Search, found: Settled) -> None:
    """Write the ledger of the moves that led to the result."""
    chain = search.chain
    trials = chain.ledger(found.index) + _last_trials(chain, found)
    write_ledger(workspace.ledger, trials, chain.space, chain.logits)


def _last_trials(chain: Chain, found: Settled) -> list[Trial]:
    """Weigh the moves that fitted the result to its target."""
    state, trials = chain.states[found.index], []
    for number, move in enumerate(found.moves):
        trial = weigh(
            found.index + number,
            state,
            move,
            chain.logits,
            chain.rules,
            chain.latency_ms,
            chain.ap_drop,
        )
        trials.append(replace(trial, chosen=True, reason="lands between the target and 5 % above"))
        state = move.after
    return trials


def _result(
    workspace: Workspace, search: _Search, found: Settled, source: Source, *, trust: bool
) -> dict[str, Any]:
    goal, target = search.goals[0], search.form.targets[0]
    limits, table = goal.limits, goal.prices.table
    architecture = search.architecture(found.state)
    predicted = goal.prices.cost(found.state)
    measured = found.measured[0] if found.measured else None
    first = table.predict_ms(architecture)
    weights = importances(search.chain.space, search.chain.logits)
    where = find_table(workspace.tables, target, architecture.input_size, trust=trust)
    return {
        "target_fps": round(limits.fps, 4),
        "max_latency_ms": limits.max_latency_ms,
        "percentile": limits.percentile,
        "max_memory_mb": limits.max_memory_mb,
        "max_size_mb": limits.max_size_mb,
        "predicted_fps": round(predicted.fps, 3),
        "predicted_ms": round(1000.0 / predicted.fps, 4),
        "table_ms": round(first, 4),
        "predicted_size_mb": round(predicted.size_mb, 2),
        "predicted_memory_mb": _rounded(predicted.memory_mb),
        "measured_fps": round(measured.fps, 3) if measured else None,
        "measured_fps_now": round(measured.fps_now, 3) if measured else None,
        "reference_ms": table.reference_ms,
        "measured_ms": round(1000.0 / measured.fps, 4) if measured else None,
        "measured_p50_ms": round(measured.p50_ms, 4) if measured else None,
        "measured_p95_ms": round(measured.p95_ms, 4) if measured else None,
        "measured_size_mb": round(measured.size_mb, 2) if measured else None,
        "measured_memory_mb": _rounded(measured.memory_mb) if measured else None,
        "met": not found.broken,
        "speedup": round(found.speedup, 4) if measured else None,
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
        "architecture": None if found.at_floor else str(workspace.architecture),
        "widths": list(architecture.widths),
        "blocks": list(architecture.blocks),
        "global_block": architecture.global_block,
        "positions": found.state.positions(),
        "space": search.form.space.to_json(),
        "importance": {name: round(m, 4) for name, m in weights.items()},
        "ranked_by": source.name,
        "ap_drop_by": search.evaluator.meaning,
        "proxies": {v.proxy: _rounded(v.spearman, 3) for v in search.evaluator.verdicts},
        "table": str(where or table_path(workspace, table)),
        "table_factor": round(goal.prices.speed * table.calibration.factor, 4),
        "held_out_error": table.calibration.held_out_error,
        "margin": round(goal.margin(corrected=False), 4),
        "measurements": found.measurements,
        "steps": found.index + len(found.moves),
        "devices": [
            {
                "device": other.prices.table.conditions.stem,
                "target_fps": round(other.limits.fps, 4),
                "predicted_fps": round(other.prices.cost(found.state).fps, 3),
                "measured_fps": round(cost.fps, 3) if cost else None,
            }
            for other, cost in zip(
                search.goals, found.measured or [None] * len(search.goals), strict=True
            )
        ],
    }


def _rounded(value: float, digits: int = 1) -> float | None:
    return None if math.isnan(value) else round(value, digits)


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


def _floor_error(search: _Search, found: Settled, result: dict[str, Any]) -> PromiseError:
    """Say what the smallest network reaches, and what would reach the target."""
    target, limits = search.form.targets[0], search.form.limits[0]
    height, width = result["input_size"]
    fps = result["measured_fps"] or result["predicted_fps"]
    # Nearly all cost is proportional to the number of pixels.
    shrink = math.sqrt(min(1.0, fps / limits.fps))
    sides = [int(side * shrink) // 64 * 64 for side in (height, width)]
    other = "openvino" if target.runtime == "onnxruntime" else "onnxruntime"
    ways = [f"--input-size {sides[0]}x{sides[1]} (estimated)"] if min(sides) >= 64 else []
    if target.threads < target.detected.cores:
        ways.append(f"--threads {target.detected.cores}")
    ways.append(f"--runtime {other}")
    result["floor"] = {"widths": result.pop("widths"), "blocks": result.pop("blocks")}
    return PromiseError(
        f"{limits.fps:g} FPS is out of reach: the smallest network of the space runs at "
        f"{fps:.1f} FPS on {result['device']} at {height}x{width}, {target.threads} thread(s), "
        f"{target.runtime} ({'; '.join(found.broken)}); try {' or '.join(ways)}",
        result,
    )
