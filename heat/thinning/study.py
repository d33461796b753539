"""The same search as an Optuna study: same space, same table, same evaluator as the greedy one.

A study's storage is shared by as many workers on as many machines as join it: a journal file, or a
database (SQLite, PostgreSQL). What a killed worker was trying is tried again. The first trial of
every study is the greedy result; where a study finds nothing better, `heat thin` keeps that.
"""

import os
import socket
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast

import optuna
from optuna.trial import FrozenTrial, TrialState

from supernet.errors import UserError
from supernet.heatdetr.architecture import CONDENSED, WIDTH_STEP, GlobalBlock
from supernet.heatdetr.place import local_name
from supernet.heatdetr.supernet import CANDIDATES, IDENTITY, SearchSpace
from supernet.progress import Progress

from .journal import fingerprint
from .moves import Logits, Place, State, ThinningRules
from .search import Method
from .study_storage import STALE_AFTER_S, open_storage

WORKER = "worker"
"""Trial attribute: host and process that tries it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What a study minimises, and under which constraint."""

    space: SearchSpace
    logits: Logits
    rules: ThinningRules
    latency_ms: Callable[[State], float]
    lost: Callable[[State], float]
    """Accuracy lost against the full supernet, in points or a proxy's equivalent."""
    max_ms: float
    """Latency that a network must keep."""
    evaluator: str
    """Name of the evaluator, part of what a study is about."""
    based_on: str = ""
    """Digest of the latency tables and of the supernet's weights, likewise."""

    @property
    def digest(self) -> str:
        """Return what must be the same for a study to be joined."""
        return fingerprint(
            space=self.space.to_json(),
            evaluator=self.evaluator,
            max_ms=round(self.max_ms, 6),
            based_on=self.based_on,
        )


def encode(state: State, space: SearchSpace, logits: Logits) -> dict[str, int | str]:
    """Return the parameters of a state: four widths, and an operator for each position."""
    values: dict[str, int | str] = {
        f"width{stage}": width for stage, width in enumerate(state.widths, 1)
    }
    for place in State.full(space).allowed:
        live = place in state.allowed
        operator = state.operator(place, logits) if live else IDENTITY
        values[local_name(*place)] = CANDIDATES[operator]
    if space.template.global_block == "oa":
        values["global_block"] = state.global_block or "oa"
    return values


def decode(
    values: Mapping[str, int | str], space: SearchSpace, logits: Logits, floor: int = 1
) -> State:
    """Return the state of parameters; a stage left with too few positions keeps its likeliest."""
    w1, w2, w3, w4 = (int(values[f"width{stage}"]) for stage in (1, 2, 3, 4))
    allowed: dict[Place, tuple[int, ...]] = {}
    every = list(State.full(space).allowed)
    for place in every:
        operator = CANDIDATES.index(values[local_name(*place)])
        if operator != IDENTITY:
            allowed[place] = (operator,)
    for stage in (1, 2, 3, 4):
        places = [place for place in every if place[0] == stage]
        gone = [place for place in places if place not in allowed]
        gone.sort(key=lambda place: max(logits[place][:IDENTITY]) - logits[place][IDENTITY])
        while len(places) - len(gone) < floor:
            place = gone.pop()
            allowed[place] = (max(range(IDENTITY), key=lambda n: logits[place][n]),)
    block = cast(GlobalBlock, values.get("global_block", "oa"))
    return State((w1, w2, w3, w4), allowed, None if block == "oa" else block)


def suggest(trial: optuna.Trial, problem: Problem) -> State:
    """Draw a state."""
    values: dict[str, int | str] = {}
    for stage, widest in enumerate(problem.space.widths, 1):
        key = f"width{stage}"
        values[key] = trial.suggest_int(key, problem.rules.min_width, widest, step=WIDTH_STEP)
    for place in State.full(problem.space).allowed:
        values[local_name(*place)] = trial.suggest_categorical(local_name(*place), CANDIDATES)
    if problem.space.template.global_block == "oa":
        values["global_block"] = trial.suggest_categorical("global_block", ("oa", *CONDENSED))
    return decode(values, problem.space, problem.logits, problem.rules.min_blocks)


def sampler_of(method: Method, seed: int) -> optuna.samplers.BaseSampler:
    """Return Optuna's sampler of a method."""
    if method == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed)
    if method == "tpe":
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=False)
    return optuna.samplers.RandomSampler(seed=seed)


def search(
    problem: Problem,
    method: Method,
    *,
    trials: int,
    starts: Sequence[State] = (),
    storage: str | None = None,
    seed: int = 0,
    frontier: bool = False,
) -> optuna.Study:
    """Try networks until the study has so many finished trials, with whoever else has joined it.

    `starts` are the first trials. NSGA-II minimises what is lost and milliseconds; the others what
    is lost. The latency limit is a constraint, unless the whole `frontier` of both is searched.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    two = frontier or method == "nsga2"
    opened = open_storage(storage)
    name = f"heat-{method}{'-frontier' if frontier else ''}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(
                storage=opened,
                sampler=sampler_of(method, seed if storage is None else seed + os.getpid()),
                study_name=name,
                directions=["minimize"] * (2 if two else 1),
                load_if_exists=True,
            )
        known, begun = study.user_attrs.get("problem"), bool(study.get_trials(deepcopy=False))
    except Exception as error:
        if storage is None:
            raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"--study {storage} cannot be read: {reason}: use another") from None
    if known is None and begun:
        raise UserError(f"the study {name} in {storage} is not HEAT's: use another --study")
    if known is None:
        study.set_user_attr("problem", problem.digest)
        for start in starts:
            study.enqueue_trial(encode(start, problem.space, problem.logits))
    elif known != problem.digest:
        raise UserError(
            f"the study {name} in {storage} was made by another space, evaluator, limit, "
            "latency table or supernet: use another --study"
        )
    _retry_killed(study)
    current: int | None = None
    with Progress(f"study {method}", trials, done=len(_finished(study))) as bar:

        def objective(trial: optuna.Trial) -> float | tuple[float, float]:
            nonlocal current
            current = trial.number
            trial.set_user_attr(WORKER, f"{socket.gethostname()}:{os.getpid()}")
            state = suggest(trial, problem)
            ms = problem.latency_ms(state)
            if not frontier:
                trial.set_constraint("latency", ms / problem.max_ms - 1.0)
            lost = problem.lost(state)
            trial.set_user_attr("ms", ms)
            trial.set_user_attr("lost", lost)
            return (lost, ms) if two else lost

        while len(_finished(study)) < trials:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                current = None
                try:
                    study.optimize(objective, n_trials=1)
                except (ValueError, optuna.exceptions.OptunaError):
                    # SQLite locks no rows: two workers may take the same queued trial.
                    if current not in {trial.number for trial in _finished(study)}:
                        raise
            bar.advance()
    return study


def best_state(study: optuna.Study, problem: Problem) -> State | None:
    """Return the least lossy network that keeps the latency; None if none does."""
    kept = [t for t in _finished(study) if t.user_attrs["ms"] <= problem.max_ms]
    if not kept:
        return None
    best = min(kept, key=lambda trial: (trial.user_attrs["lost"], trial.user_attrs["ms"]))
    return decode(best.params, problem.space, problem.logits, problem.rules.min_blocks)


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _retry_killed(study: optuna.Study) -> None:
    """Queue again what killed workers were trying; a database does so by its heartbeat."""
    host = socket.gethostname()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        where, _, pid = str(trial.user_attrs.get(WORKER, "")).rpartition(":")
        started = trial.datetime_start or datetime.now()
        old = datetime.now() - started > timedelta(seconds=STALE_AFTER_S)
        if old or (where == host and not _alive(int(pid))):
            try:
                study.tell(trial.number, state=TrialState.FAIL)
            except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
                continue  # another worker was quicker
            params = trial.params or trial.system_attrs.get("fixed_params", {})
            study.enqueue_trial(params)
            print(f"trial {trial.number} of a killed worker is tried again", file=sys.stderr)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
