"""Greedy, TPE, NSGA-II or random: which finds the better frontier at the same evaluations?

    python benchmarks/search_methods.py --table latency_tables/amd-epyc-...csv --seeds 3
    python benchmarks/search_methods.py --table T.csv --run heat-run --data DIR --ap-drop loss

Every method evaluates the same number of networks, as many as the greedy search does from the full
supernet to its floor, with the same table and evaluator. Each network is a point of (lost,
milliseconds); the hypervolume is the share of the box up to the full supernet's milliseconds and
the worst loss that the method's points dominate: larger is better. `nsga2+greedy` starts from the
greedy frontier and gets the same number of evaluations on top, as `heat thin --search` does.
Without --run moves are ranked by the prior, and lost is the removed importance mass. The last line
is JSON.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from figures import draw_fronts
from optuna import Study
from optuna._hypervolume import compute_hypervolume
from optuna.trial import TrialState
from result import tell

from heat.spaces import search_space
from heat.thinning.evaluation import Evaluations
from heat.thinning.journal import Journal, fingerprint
from heat.thinning.moves import State, ThinningRules
from heat.thinning.proxies import ApDropBy, choose
from heat.thinning.search import Chain
from heat.thinning.source import load_source
from heat.thinning.study import Problem, decode, encode, search
from heat.workspace import Workspace
from latency_tables.table_file import read_table
from supernet.data.coco import load_split

RESULTS = Path(__file__).parent / "results" / "search-methods"
Points = list[tuple[float, float]]


def hypervolume(points: Points, worst: tuple[float, float]) -> float:
    """Return the dominated share of the box from (0, 0) to the worst point."""
    inside = [p for p in points if p[0] <= worst[0] and p[1] <= worst[1]]
    if not inside:
        return 0.0
    scaled = np.array(inside) / np.array(worst)
    return float(compute_hypervolume(scaled, np.ones(2)))


def points_of(study: Study) -> Points:
    """Return the networks of a study as points of (lost, milliseconds)."""
    trials = study.get_trials(states=(TrialState.COMPLETE,))
    return [(t.user_attrs["lost"], t.user_attrs["ms"]) for t in trials]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--run", type=Path, help="workspace with a trained supernet")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--ap-drop", default="auto")
    parser.add_argument("--space", default="large")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, help="as many as greedy needs by default")
    parser.add_argument("--name")
    options = parser.parse_args()
    table = read_table(options.table)
    size = table.conditions.input_size
    workspace = Workspace(options.run or Path("nowhere"))
    space = search_space(options.space, input_size=size, num_classes=80)
    source = load_source(workspace, space)
    evaluations = None
    if source.supernet is not None:
        space = source.supernet.space
        data = load_split(options.data, "train")
        journal = Journal(options.run / "methods.jsonl", fingerprint(supernet=source.digest))
        evaluations = Evaluations(source.supernet, space, data, source.logits, journal)
    rules = ThinningRules(stage_rule="mean" if source.supernet else "all")
    by: ApDropBy = options.ap_drop
    evaluator = choose(by, evaluations, space, source.logits, rules)
    full = State.full(space)
    known: dict[tuple[Any, ...], float] = {}

    def latency_ms(state: State) -> float:
        architecture = state.architecture(space, source.logits)
        key = (architecture.widths, architecture.blocks)
        if key not in known:
            known[key] = table.predict_ms(architecture)
        return known[key]

    def plain(state: State) -> State:
        """Return the same network without what it might still become: methods are compared."""
        return decode(encode(state, space, source.logits), space, source.logits)

    def lost(state: State) -> float:
        return evaluator.drop(full, plain(state))

    started = time.monotonic()
    chain = Chain(space, source.logits, rules, latency_ms, evaluator.drop)
    while chain.extend():
        pass
    evaluated = [trial.move.after for trials in chain.trials for trial in trials]
    count = options.evaluations or len(evaluated)
    found: dict[str, list[Points]] = {
        "greedy": [[(lost(state), latency_ms(state)) for state in evaluated[:count]]]
    }
    greedy_seconds = time.monotonic() - started
    print(f"greedy: {len(evaluated)} networks in {greedy_seconds:.1f} s", flush=True)
    problem = Problem(
        space=space,
        logits=source.logits,
        rules=rules,
        latency_ms=latency_ms,
        lost=lost,
        max_ms=latency_ms(full),
        evaluator=evaluator.name,
    )
    for method in ("tpe", "nsga2", "random"):
        for seed in range(options.seeds):
            study = search(problem, method, trials=count, seed=seed, frontier=True)  # type: ignore[arg-type]
            found.setdefault(method, []).append(points_of(study))
    starts = chain.states[:: max(1, len(chain.states) // 40)]
    found["nsga2+greedy"] = [
        found["greedy"][0]
        + points_of(search(problem, "nsga2", trials=count, seed=seed, frontier=True, starts=starts))
        for seed in range(options.seeds)
    ]
    every = [point for runs in found.values() for points in runs for point in points]
    worst = (max(point[0] for point in every), latency_ms(full))
    volumes = {
        method: [round(hypervolume(points, worst), 4) for points in runs]
        for method, runs in found.items()
    }
    result = {
        "hypervolume": {method: statistics.median(values) for method, values in volumes.items()},
        "each": volumes,
        "evaluations": count,
        "evaluator": evaluator.name,
        "ranked_by": source.name,
        "seeds": options.seeds,
        "greedy_seconds": round(greedy_seconds, 2),
        "seconds": round(time.monotonic() - started, 1),
        "table": options.table.name,
        "space": options.space if evaluations is None else "the supernet's",
    }
    tell(result, RESULTS / f"{options.name}.json" if options.name else None)
    if options.name:
        fronts = {method: runs[0] for method, runs in found.items()}
        draw_fronts(fronts, evaluator.meaning, RESULTS / f"{options.name}.svg")


if __name__ == "__main__":
    main()
