"""Broken files for every reader, as many as asked for: a value, or one line of error?

    PYTHONPATH=. python benchmarks/fuzz.py --cases 100000 [--only coco,table] [--seed 1]

Mutates valid files (`tests/fuzzing.py`). Cases of one reader run in a process of their own, so that
a crash is a finding too; memory beyond 1 GB is one as well. Every finding is printed with what
repeats it. The last line is one JSON object; with --name it goes to benchmarks/results/.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from result import RESULTS, tell

from tests.fuzzed_readers import READERS
from tests.fuzzing import cases

MOST_MB = 1000
"""Memory that a reader may take beyond what the process had."""


def run_reader(name: str, count: int, seed: int, queue: Any) -> None:
    """Run the cases of a reader, and put its findings and its peak of memory into the queue."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        found = [(n, problem) for n, problem, _ in cases(name, count, Path(folder), seed=seed)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    queue.put((found, (peak - before) / 1024))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="of all readers together")
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--name")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(READERS)
    count = max(1, options.cases // len(names))
    context = multiprocessing.get_context("fork")
    found: dict[str, Any] = {}
    started = time.monotonic()
    for name in names:
        queue = context.Queue()
        process = context.Process(target=run_reader, args=(name, count, options.seed, queue))
        process.start()
        while process.is_alive() and queue.empty():
            process.join(0.2)
        findings, extra_mb = ([(-1, "the process crashed")], 0.0) if queue.empty() else queue.get()
        process.join()
        kinds = Counter(problem.split(":")[0] for _, problem in findings)
        if extra_mb > MOST_MB:
            kinds["memory"] += 1
        found[name] = {"cases": count, "findings": dict(kinds), "extra_mb": round(extra_mb, 1)}
        print(json.dumps({"reader": name, **found[name]}), file=sys.stderr)
        for number, problem in findings[:5]:
            print(f"  case {number}, seed {options.seed}: {problem}", file=sys.stderr)
    result = {
        "cases": count * len(names),
        "findings": sum(sum(r["findings"].values()) for r in found.values()),
        "readers": found,
        "seconds": round(time.monotonic() - started, 1),
    }
    tell(result, RESULTS / f"{options.name}.json" if options.name else None)


if __name__ == "__main__":
    main()
