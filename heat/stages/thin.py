"""`heat thin`: cut the supernet down until the network runs at the target on this device."""

import math
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from latency_tables.store import conditions_of
from latency_tables.table_file import write_table
from supernet.atomic import replacing
from supernet.data.coco import find_split
from supernet.data.detection_set import DetectionSet
from supernet.errors import PromiseError, UserError
from supernet.progress import Progress

from ..records import Result
from ..thinning.again import run_again
from ..thinning.candidates import Candidate, CandidateSearch, open_search
from ..thinning.ceiling import refuse_impossible
from ..thinning.evaluation import split_held_out
from ..thinning.frontier import write_frontier
from ..thinning.greedy import Trial
from ..thinning.moves import ThinningRules
from ..thinning.proxies import ApDropBy
from ..thinning.result import floor_error, result_of, write_moves
from ..thinning.search import Method
from ..thinning.settle import CHECKED_MARGIN, settle
from ..thinning.source import Source, check_fits, load_source
from ..thinning.thinned import STAGE
from ..workspace import Workspace
from .inherited import write_inherited
from .profile import warn


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """An Optuna study in the greedy search's place."""

    method: Method
    trials: int
    storage: str | None
    """Journal file or database URL; None keeps it in memory."""


def thin(
    workspace: Workspace,
    candidates: Sequence[Candidate],
    *,
    data: DetectionSet | None = None,
    ap_drop: ApDropBy = "auto",
    rules: ThinningRules | None = None,
    trust: bool = False,
    frontier: bool = False,
    study: StudyPlan | None = None,
) -> Result:
    """Search, build the chosen network, measure it; raise `PromiseError` if a limit is missed.

    Of several candidates the one whose network scores best is taken; all come from one supernet.
    The measured network must run between the target and 5 % above it; one that does not corrects
    the table's predictions, and the next is chosen. A trusted table of a device that is not here
    cannot be checked by measuring: the result states so. With `frontier` the chain of moves is
    followed to its floor and written out: it holds the network of every other target. A `study`
    starts from the greedy result and may find a better one.
    """
    started = time.monotonic()
    _refuse_twice(candidates)
    refuse_impossible(candidates)
    for target in {
        target.name: target for candidate in candidates for target in candidate.targets
    }.values():
        warn(target)
    source = load_source(workspace, candidates[0].space)
    if data is not None and source.supernet is not None:
        check_fits(source.supernet, candidates[0].space, workspace)
        data = data.numbered_as(source.names)
        _check_images(source, data, needed=len(candidates) > 1 or ap_drop in ("loss", "ap"))
    if source.supernet is not None and source.supernet.elastic and data is None:
        raise UserError(
            "BatchNorm of the network that an elastic supernet hands on is recalibrated on images: "
            "give --data"
        )
    if len(candidates) > 1 and (source.supernet is None or data is None):
        raise UserError(
            "which input size or precision is best is evaluated on images: give --data and train a "
            "supernet first, or one --input-size and one --precision"
        )
    if rules is None:
        # Without training no stage is known to matter less: every stage's moves are scored.
        rules = ThinningRules(stage_rule="mean" if source.supernet is not None else "all")
    inherited: Result = {}
    with ExitStack() as stack:
        stack.enter_context(
            workspace.claimed(workspace.ledger.parent, f"thinning in {workspace.root}")
        )
        searches = [
            stack.enter_context(
                open_search(workspace, candidate, source, data, ap_drop, rules, trust)
            )
            for candidate in candidates
        ]
        search = _best(searches) if len(searches) > 1 else searches[0]
        if study is not None:
            _study(workspace, search, study)
        with Progress("thin", 100, even=False) as bar:
            _show_steps(search, bar)
            found = settle(search.chain, search.goals)
        for goal in search.goals:
            if goal.measure is not None:  # what was measured is part of the table from now on
                write_table(goal.prices.table, workspace.tables)
        if frontier:
            while search.chain.extend():
                pass
            prices, unit = search.goals[0].prices, search.evaluator.meaning
            write_frontier(workspace, search.chain, prices, unit)
        result = result_of(workspace, search, found, source, trust=trust)
        result = replace(
            result,
            candidates=tuple(map(str, candidates)),
            seconds=round(time.monotonic() - started, 1),
        )
        missed = floor_error(search, found, result) if found.at_floor else None
        if missed is None:
            network = search.architecture(found.state)
            inherited = write_inherited(workspace, source, result, network, data)
            write_moves(workspace, search, found)
            network.save(workspace.architecture)  # last, beside the record of what it promises
            workspace.record(STAGE, {**result.to_dict(), **inherited})
            workspace.searched.unlink(missing_ok=True)
        search.measured.forget()  # last: until then a search that is killed goes on from it
    if missed is not None:
        raise missed
    if found.broken:
        raise PromiseError(
            f"{'; '.join(found.broken)} after {found.measurements} measurements: this machine is "
            f"too noisy to keep the promise now; {run_again()}",
            result.to_dict(),
        )
    if result.measured_fps is None:
        print(
            f"{result.predicted_fps:.1f} FPS "
            f"{'ESTIMATED' if result.source == 'estimated' else 'by a table'} for "
            f"{result.device}, which is not here: measured nowhere",
            file=sys.stderr,
        )
    return {**result.to_dict(), **inherited}


def _show_steps(search: CandidateSearch, bar: Progress) -> None:
    """Let a bar show how far the steps of the chain are on the way to the limits, in percent."""
    chain, follow = search.chain, search.chain.on_step
    full = chain.states[0]
    load = max(goal.limits.load(goal.predict(full)) for goal in search.goals)
    full_ms = chain.latency_ms(full)

    def on_step(trials: list[Trial]) -> None:
        follow(trials)
        chosen = next(trial for trial in trials if trial.chosen)
        way = math.log(full_ms / chosen.ms) / math.log(load) if load > 1 else 1.0
        bar.reach(round(100 * way), f"{chosen.fps:.1f} FPS predicted, then measured")

    chain.on_step = on_step


def _check_images(source: Source, data: DetectionSet, *, needed: bool) -> None:
    """Refuse, where losses and AP are `needed`, to read them on what the supernet has learnt.

    And warn where the set is not the one of its training.
    """
    assert source.supernet is not None
    elastic = source.supernet.elastic
    if elastic and needed and find_split(data.root, "val") is None:
        raise UserError(
            "an elastic supernet is trained on all training images: losses and AP are read on a "
            f"val split, and {data.root} has none: add one, or take one --input-size, one "
            "--precision and --ap-drop mass"
        )
    part, _ = split_held_out(data)
    if not elastic and source.images not in (None, len(part.records)):
        print(
            f"warning: the supernet was trained on {source.images} images, of those that are here "
            f"it would be {len(part.records)}: losses and AP may be of images that it has learnt "
            "(heat supernet --restart trains it on these)",
            file=sys.stderr,
        )


def _refuse_twice(candidates: Sequence[Candidate]) -> None:
    """Refuse what would wait for itself: each table is held once."""
    tables = [
        conditions_of(target, candidate.space.template.input_size).stem
        for candidate in candidates
        for target in candidate.targets
        if target.here
    ]
    twice = next((name for name in tables if tables.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is asked for twice: give each device and precision once")


def _best(searches: Sequence[CandidateSearch]) -> CandidateSearch:
    """Return the candidate whose predicted network scores best on the held-out images."""
    found: list[tuple[CandidateSearch, float, float]] = []
    loads: list[float] = []
    for search in searches:
        assert search.evaluations is not None
        settled = search.by_prediction()
        loads.append(max(goal.limits.load(goal.predict(settled.state)) for goal in search.goals))
        if settled.broken:
            print(
                f"{search.candidate}: too slow by its table: {settled.broken[0]}", file=sys.stderr
            )
            continue
        loss, ap = search.evaluations.quality(settled.state, search.candidate.targets[0].precision)
        print(f"{search.candidate}: loss {loss:.3f}, AP {ap:.2f}", file=sys.stderr)
        found.append((search, loss, ap))
    if not found:  # a table may be wrong: the fastest is measured
        return searches[loads.index(min(loads))]
    if all(
        search.evaluations is not None and search.evaluations.ap_is_informative
        for search, _, _ in found
    ):
        return max(found, key=lambda scored: scored[2])[0]
    return min(found, key=lambda scored: scored[1])[0]


def _study(workspace: Workspace, search: CandidateSearch, plan: StudyPlan) -> None:
    """Replace the chain's way to the target by what an Optuna study finds."""
    from ..thinning.study import Problem, best_state
    from ..thinning.study import search as run

    greedy = search.by_prediction()
    if greedy.broken:
        return  # no network is predicted to keep the limits: the smallest will be measured
    full = search.chain.states[0]
    problem = Problem(
        space=search.candidate.space,
        logits=search.chain.logits,
        rules=search.chain.rules,
        latency_ms=search.chain.latency_ms,
        lost=lambda state: search.chain.ap_drop(full, state),
        # Not the margin of the table: its error changes by each search, and a study goes on.
        max_ms=1000.0 / search.candidate.limits[0].fps / (1 + CHECKED_MARGIN),
        evaluator=search.evaluator.name,
        based_on=search.based_on,
    )
    study = run(
        problem, plan.method, trials=plan.trials, starts=[greedy.state], storage=plan.storage
    )
    with replacing(workspace.root / "thin" / "study.csv") as temporary:
        study.trials_dataframe().to_csv(temporary, index=False)
    best = best_state(study, problem)
    if best is None:
        return
    chain = search.chain
    way = (chain.states[:], chain.trials[:], chain.at_floor)
    chain.jump(best)
    if problem.lost(search.by_prediction().state) >= problem.lost(greedy.state):
        chain.states[:], chain.trials[:], chain.at_floor = way  # no better where limits are kept
