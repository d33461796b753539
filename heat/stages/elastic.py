"""`heat supernet --elastic`: train all networks that thinning will ask for, on shared weights."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from supernet.atomic import write_text
from supernet.checkpoint import WEIGHTS, file_digest, read_info
from supernet.data.detection_set import DetectionSet, check_trainable
from supernet.errors import CheckpointError, UserError
from supernet.heatdetr.elastic import Member
from supernet.heatdetr.inherit import order_channels
from supernet.heatdetr.supernet import SearchSpace, Supernet
from supernet.train.distributed import first_process
from supernet.train.elastic_task import ElasticConfig, ElasticTask
from supernet.train.loop import run_task
from supernet.train.recipes import TrainConfig
from supernet.train.running import Running

from ..records import Result
from ..thinning.candidates import Candidate, Wanted, open_search
from ..thinning.moves import State, ThinningRules
from ..thinning.nested import by_size, members_of, whole_chain
from ..thinning.search import Chain
from ..thinning.settle import Goal
from ..thinning.source import elastic_facts, load_source, load_supernet
from ..workspace import Workspace

PLAN = "plan.json"
"""The networks that an elastic supernet trains."""
PAST_TARGET = 1
"""Networks of a chain that are trained beyond the first that is fast enough: thinning measures,
and may find the table too hopeful."""


def train_elastic(
    workspace: Workspace,
    data: DetectionSet,
    config: TrainConfig,
    elastic: ElasticConfig,
    *,
    fleet: Mapping[str, Wanted] | None = None,
    running: Running | None = None,
) -> Result:
    """Train the workspace's supernet on until its networks need no training of their own.

    They are those on the chains of a `fleet`, each until its target; without one, those of the
    whole chain by multiply-adds. A finished training is kept, whatever the fleet is by then:
    another device costs a thinning, no training. All training images are trained on.
    """
    check_trainable(data)
    running = running or Running()
    path = workspace.elastic / WEIGHTS
    supernet = load_supernet(workspace)
    if supernet is None:
        raise UserError(f"no supernet in {workspace.supernet}: heat supernet --data DIR first")
    digest = file_digest(workspace.supernet / WEIGHTS)
    before = workspace.stages().get("elastic")
    if not running.restart and before is not None and is_finished(path, digest):
        _say_what_is_kept(path, config, elastic)
        return before
    with workspace.training(workspace.elastic):
        members, asked = _planned(workspace, supernet, digest, fleet, afresh=running.restart)
        largest = members[0]
        torch.manual_seed(config.seed)
        ordered = order_channels(supernet, largest.architecture, largest.positions)
        task = ElasticTask(ordered, data, members, elastic, asked=asked, origin=digest)
        networks = [member.to_dict() for member in (*members, *asked)]
        start = {"supernet": digest, "networks": _digest([*networks, asdict(elastic)])}
        done = run_task(task, config, workspace.elastic, running, start=start)
    result = {
        **done.facts(),
        "images": len(data.records),
        "data": str(data.root),
        "space": supernet.space.to_dict(),
        "networks": len(members),
        "largest": members[0].to_dict(),
        "smallest": members[-1].to_dict(),
    }
    return workspace.record("elastic", result) if done.leads else result


def _say_what_is_kept(path: Path, config: TrainConfig, elastic: ElasticConfig) -> None:
    """Print a warning where a finished training is not the one that is asked for."""
    kept, epochs = elastic_facts(path), read_info(path).epochs
    ways = {"epochs": (epochs, config.epochs)} | {
        name: (kept.get(name), value) for name, value in asdict(elastic).items()
    }
    other = [f"{name} {old}, not {new}" for name, (old, new) in ways.items() if old != new]
    if other:
        print(
            f"warning: the finished elastic supernet is kept: {', '.join(other)} "
            "(heat supernet --elastic --restart trains anew)",
            file=sys.stderr,
        )


def is_finished(path: Path, digest: str) -> bool:
    """Return whether a checkpoint is the finished training of a supernet of this digest."""
    try:
        return elastic_facts(path)["supernet"] == digest and read_info(path).finished
    except CheckpointError:
        return False


def refuse_several_processes() -> None:
    """Raise `UserError` under torchrun, where latency tables cannot be measured."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(
            "--targets measures latency tables, which one process does: start this without "
            "torchrun, interrupt it once it trains, and go on under torchrun with --resume"
        )


def _planned(
    workspace: Workspace,
    supernet: Supernet,
    digest: str,
    fleet: Mapping[str, Wanted] | None,
    *,
    afresh: bool,
) -> tuple[list[Member], list[Member]]:
    """Return the networks to train, and those of them that are asked for.

    They are fixed when the training is first started.
    """
    path = workspace.elastic / PLAN
    kept = read_plan(path, supernet.space, digest) if not afresh else None
    if kept is not None:
        if fleet is not None:
            print(
                f"elastic: goes on with the {len(kept[0])} networks of {path}; what the fleet asks "
                "for since then is thinned from them (--restart plans anew)",
                file=sys.stderr,
            )
        return kept
    if fleet is None:
        members, asked = of_every_block(supernet), []
    else:
        refuse_several_processes()
        size = supernet.space.template.input_size
        ways = [
            way for name, wanted in fleet.items() for way in _ways(workspace, name, wanted, size)
        ]
        members = by_size(member for way, _ in ways for member in way)
        asked = by_size(goal for _, goal in ways)
    if first_process():
        workspace.elastic.mkdir(parents=True, exist_ok=True)
        plan = {
            "supernet": digest,
            "networks": [member.to_dict() for member in members],
            "asked": [member.to_dict() for member in asked],
        }
        write_text(path, json.dumps(plan, indent=1) + "\n")
    print(f"elastic: {len(members)} networks are trained together", file=sys.stderr)
    return members, asked


def of_every_block(supernet: Supernet) -> list[Member]:
    """Return the networks of the chain of every global block that a device may be given."""
    logits, found = supernet.logits(), []
    kinds = {supernet.space.template.global_block}
    if supernet.space.global_choice:
        kinds = {"cw", supernet.best_global_block()}
    for kind in sorted(kinds):
        template = supernet.space.template.with_(global_block=kind)
        space = replace(supernet.space, template=template, global_choice=False)
        found += members_of(whole_chain(space, logits, ThinningRules()), space, logits)
    return by_size(found)


def _ways(
    workspace: Workspace, name: str, wanted: Wanted, size: tuple[int, int]
) -> Iterator[tuple[list[Member], Member]]:
    """Yield the networks that thinning passes through, and the one that reaches the target.

    One way for each size and precision that it may choose; `UserError` where none gets there. All
    are trained at the supernet's size.
    """
    refusals = []
    for candidate in wanted.candidates:
        source = load_source(workspace, candidate.space, elastic=False)
        member = workspace.member(name)
        with open_search(
            member, candidate, source, None, "mass", ThinningRules(), wanted.trust
        ) as search:
            chain, goals = search.chain, search.goals
            chain.on_step = lambda trials: None

            def good(state: State, goals: Sequence[Any] = goals) -> bool:
                return not any(goal.limits.broken(goal.predict(state)) for goal in goals)

            index = chain.reach(good)
            if index is None:
                refusals.append(_refusal(candidate, chain, goals))
                continue
            for _ in range(PAST_TARGET):
                chain.extend()
            states = chain.states[: index + 1 + PAST_TARGET]
            template = search.candidate.space.template.with_(input_size=size)
            space, logits = replace(search.candidate.space, template=template), chain.logits
            goal = members_of([chain.states[index]], space, logits)[0]
            yield members_of(states, space, logits), goal
    if len(refusals) == len(wanted.candidates):
        raise UserError(f"[{name}]: {refusals[0]}")


def _refusal(candidate: Candidate, chain: Chain, goals: Sequence[Goal]) -> str:
    """Say why no network of a chain will do."""
    fastest, slowest = (goals[0].predict(chain.states[i]) for i in (-1, 0))
    last = chain.states[-1]
    broken = [reason for goal in goals for reason in goal.limits.broken(goal.predict(last))]
    return (
        f"outside of the chain, whose networks are predicted to run at {slowest.fps:.1f} to "
        f"{fastest.fps:.1f} FPS on {candidate.targets[0].name}; the fastest has "
        f"{'; '.join(broken)}: a smaller --space or input size, or a lower target"
    )


def read_plan(
    path: Path, space: SearchSpace, digest: str
) -> tuple[list[Member], list[Member]] | None:
    """Return the networks that a training was begun for; None where none was, of this supernet."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        if plan["supernet"] != digest:
            return None
        members, asked = (
            [Member.from_dict(values, space.template) for values in plan[key]]
            for key in ("networks", "asked")
        )
        return members, asked
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): heat supernet --elastic --restart begins again"
        ) from None


def _digest(values: Sequence[Mapping[str, object]]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
