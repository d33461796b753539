"""The search of one candidate: its tables opened, its moves scored, its networks measured."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace

from latency_tables.devices import Target
from latency_tables.plan import LAZY, Checks
from latency_tables.pricing import Latency
from latency_tables.store import conditions_of, open_table
from latency_tables.table import LatencyTable
from supernet.data.coco import find_split, load_split
from supernet.data.detection_set import DetectionSet, evenly
from supernet.errors import UserError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.supernet import SearchSpace

from ..tables import table_lock
from ..workspace import Workspace
from .evaluation import MAX_HELD_OUT, Evaluations, images_digest
from .filling import lacks, measure_table, refresh
from .greedy import Trial
from .journal import Journal, fingerprint
from .ledger import write_ledger
from .limits import Cost, Limits, Pricer, refitting, worst_ms
from .measuring import NetworkMeter, measure_state
from .moves import Logits, State, ThinningRules
from .proxies import ApDropBy, Evaluator, choose
from .search import Chain
from .settle import OVERSHOOT, Goal, Settled, settle
from .source import Source, check_fits, with_global_block


@dataclass(frozen=True, slots=True)
class Candidate:
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
class Wanted:
    """One network of a fleet."""

    candidates: list[Candidate]
    data: DetectionSet | None
    trust: bool
    """Whether an estimated table, or one of another machine, will do."""


@dataclass(slots=True)
class CandidateSearch:
    """The chain of moves of one candidate, and what each of its networks costs."""

    candidate: Candidate
    chain: Chain
    goals: list[Goal]
    evaluator: Evaluator
    evaluations: Evaluations | None
    measured: Journal
    based_on: str
    """Digest of the tables' conditions and calibrations, of the supernet's weights, and of what
    moves are evaluated on."""

    def architecture(self, state: State) -> Architecture:
        """Return the network of a state."""
        return state.architecture(self.candidate.space, self.chain.logits)

    def by_prediction(self) -> Settled:
        """Settle on a network by the tables alone, without measuring any."""
        return settle(self.chain, [replace(goal, measure=None) for goal in self.goals])


@contextmanager
def open_search(
    workspace: Workspace,
    candidate: Candidate,
    source: Source,
    data: DetectionSet | None,
    ap_drop: ApDropBy,
    rules: ThinningRules,
    trust: bool,
) -> Iterator[CandidateSearch]:
    """Open a candidate's tables, each for this process alone, and its evaluations."""
    space = candidate.space
    if source.supernet is not None:
        check_fits(source.supernet, space, workspace)
        decided = with_global_block(source.supernet, candidate.targets)
        block = decided.template.global_block
        space = replace(decided, template=space.template.with_(global_block=block))
        candidate = replace(candidate, space=space)
    size = space.template.input_size
    with ExitStack() as locks:
        # Before anything is read, or evaluated for minutes: another process may be writing.
        for target in candidate.targets:
            if target.here:
                locks.enter_context(table_lock(workspace, conditions_of(target, size)))
        evaluations, of = None, ""
        if source.supernet is not None and data is not None:
            scored = _val_split(data, source) if source.supernet.elastic else None
            of = fingerprint(
                supernet=source.digest,
                data=data.digest,
                images=images_digest(data),
                **({"scored": scored.digest} if scored is not None else {}),
                block=space.template.global_block,
                kind="readings, statistics as in training",
                shown=asdict(source.augment),
            )
            journal = Journal(workspace.root / "thin" / "readings.jsonl", of)
            evaluations = Evaluations(
                source.supernet, space, data, source.logits, journal, augment=source.augment,
                scored=scored,
            )  # fmt: skip
        if ap_drop == "auto" and source.supernet is not None and source.supernet.elastic:
            ap_drop = "mass"  # the chain whose networks were trained
        evaluator = choose(ap_drop, evaluations, space, source.logits, rules)
        tables = [
            open_table(workspace.tables, target, size, trust=trust) for target in candidate.targets
        ]
        run = fingerprint(
            form=str(candidate),
            measured_under=[asdict(table.conditions) for table in tables],
            network=space.template.to_json(),
            limits=[asdict(limit) for limit in candidate.limits],
        )
        # One file a candidate: several are open at once.
        measured = Journal(workspace.root / "thin" / f"measured-{run}.jsonl", run)
        goals = []
        of_each = zip(tables, candidate.targets, candidate.limits, strict=True)
        for table, target, limits in of_each:
            goals.append(_goal(workspace, table, target, limits, space, source.logits, measured))
        latency_ms = worst_ms([goal.prices for goal in goals], candidate.limits)
        chain = Chain(space, source.logits, rules, latency_ms, evaluator.drop)
        chain.on_step = _follow(workspace, chain, candidate.limits[0].fps)
        based_on = fingerprint(
            supernet=source.digest,
            tables=[[asdict(t.conditions), _content(t)] for t in tables],
            evaluated="" if evaluator.name == "mass" else of,
        )
        yield CandidateSearch(candidate, chain, goals, evaluator, evaluations, measured, based_on)


def _val_split(data: DetectionSet, source: Source) -> DetectionSet | None:
    """Return images that an elastic supernet, which learns all others, was not trained on."""
    if find_split(data.root, "val") is None:
        return None
    val = load_split(data.root, "val").numbered_as(source.names)
    return val.of(evenly(val.records, MAX_HELD_OUT))


def _content(table: LatencyTable) -> list[tuple[str, float]]:
    """Return what a table was made of: its samples, or its rows where it has none.

    Networks that thinning measures do not make it another table.
    """
    if table.samples:
        return [(str(sample.entry), sample.ms) for sample in table.samples]
    return [(str(entry), row.ms) for entry, row in sorted(table.rows.items())]


def _goal(
    workspace: Workspace,
    table: LatencyTable,
    target: Target,
    limits: Limits,
    space: SearchSpace,
    logits: Logits,
    journal: Journal,
) -> Goal:
    """Measure a table where its device is at hand, and return how its networks are measured."""
    no_memory = limits.max_memory_mb is not None and table.memory is None
    if no_memory and (not target.here or target.runtime == "torch"):  # torch's is not measured
        raise UserError(f"{table.conditions.stem} has no memory model: leave --max-memory-mb out")
    if not target.here:
        if limits.percentile == "p95":
            print(
                f"warning: tables predict medians: --at p95 is compared with the median on "
                f"{target.name}, which is not here",
                file=sys.stderr,
            )
        return Goal(Pricer(table, space, logits, table.sum_ms), limits, None)
    if no_memory:
        measure_table(workspace, table, space, logits, Checks())
    elif lacks(table, space, LAZY):
        measure_table(workspace, table, space, logits, LAZY)
    else:
        refresh(workspace, table)
    memory = limits.max_memory_mb is not None
    meter = NetworkMeter(table)

    def inside(latency: Latency) -> bool:
        if limits.target_fps is None:
            return True
        return 1.0 <= 1000.0 / latency.sustained_ms / limits.target_fps <= OVERSHOOT

    def measure(state: State) -> Cost:
        architecture = state.architecture(space, logits)
        block = f" {state.global_block}" if state.global_block else ""
        version = table.conditions.runtime_version
        key = (
            f"{table.conditions.stem} {version} {architecture.widths} {architecture.blocks}{block}"
        )
        return measure_state(
            meter,
            architecture,
            inside,
            memory=memory,
            journal=lambda take: journal.value(key, take),
        )

    return Goal(Pricer(table, space, logits, refitting(table)), limits, measure)


def _follow(workspace: Workspace, chain: Chain, fps: float) -> Callable[[list[Trial]], None]:
    """Return what keeps the ledger and prints each step."""

    def on_step(trials: list[Trial]) -> None:
        chosen = next(trial for trial in trials if trial.chosen)
        place = f"S{chosen.move.stage}"
        if chosen.move.position is not None:
            place += f" position {chosen.move.position}"
        if chosen.move.steps > 1:
            place += f", {chosen.move.steps} steps"
        print(
            f"step {chosen.step}: {chosen.move.kind} {place}: {chosen.fps:.2f} FPS "
            f"(target {fps:g}), AP_drop {chosen.ap_drop:.3f}; {chosen.reason} "
            f"({len(trials)} scored)",
            file=sys.stderr,
        )
        write_ledger(workspace.searched, chain.ledger(len(chain.trials)), chain.space, chain.logits)

    return on_step
