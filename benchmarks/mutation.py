"""Mutation testing: one small fault at a time is put into a module; do its tests fail?

    python benchmarks/mutation.py [--each 40] [--seed 1] [--only decode] [--minutes 60]

A mutant changes one comparison, operator, number, truth value or condition. Mutants are drawn by a
seed, so that a run is resumed: what `results/mutation.json` has already is not run again, unless
its module, its tests or the seed changed. Each mutant runs in a process forked from one that has
imported torch, in which the module is compiled with the fault; its tests run until one fails. One
that takes far longer than the module itself counts as killed. Survivors are listed with their line,
and with a reason where one is known (`REASONS`).
"""

import argparse
import ast
import copy
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "mutation.json"
CPU_S = 90
"""Processor seconds after which a mutant counts as killed: it does not end."""


@dataclass(frozen=True)
class Subject:
    """A module, and the tests that are about it."""

    path: str
    tests: tuple[str, ...]
    keyword: str = ""
    """pytest's -k, where a file of tests has more than is needed."""


SUBJECTS = {
    "loss": Subject("supernet/train/uniform.py", ("tests/test_loss.py",)),
    "matching": Subject("supernet/train/matching.py", ("tests/test_loss.py",)),
    "moves": Subject("heat/thinning/moves.py", ("tests/test_moves.py", "tests/test_thinning.py")),
    "table": Subject(
        "latency_tables/table.py",
        ("tests/test_table_values.py", "tests/test_table.py", "tests/test_model.py"),
    ),
    "calibration": Subject(
        "latency_tables/calibration.py", ("tests/test_table_values.py", "tests/test_table.py")
    ),
    "quantization": Subject("supernet/heatdetr/quantization.py", ("tests/test_quantization.py",)),
    "decode": Subject(
        "supernet/heatdetr/operators/decode.py",
        (
            "tests/test_decode_values.py",
            "tests/test_loss.py",
            "tests/test_differential_network.py",
            "tests/test_aligned.py",
        ),
        "not macs and not runtimes",
    ),
    "parity": Subject(
        "deploy/parity.py",
        ("tests/test_parity_values.py", "tests/test_deploy.py"),
        "parity or disagrees or nms_cannot",
    ),
    "coco": Subject(
        "supernet/data/annotations.py",
        ("tests/test_annotation_values.py", "tests/test_annotations.py", "tests/test_data.py"),
    ),
    "average_precision": Subject(
        "supernet/data/average_precision.py",
        ("tests/test_evaluate.py", "tests/test_differential_ap.py"),
    ),
}

REASONS: Mapping[str, Mapping[str, str]] = {
    "matching": {"IGNORED = -2 | 2 + 1": "any negative number but NEGATIVE means ignored"},
    "table": {
        "_model: LatencyModel | None = field(default=None, init=False, compare=False, repr=False) "
        "| True": "only what repr shows",
    },
    "quantization": {
        "BINS = 2048 | 2048 + 1": "one bin more is as good",
        "CLIPS = tuple(share / 32 for share in range(8, 33)) | 33 + 1": (
            "a range beyond the largest value never has the least error"
        ),
        "found = torch.histc(x.abs().float(), BINS, 0.0, largest[name] or 1.0).double() "
        "| 1.0 + 1": "an input that is always 0 may have any range",
    },
    "average_precision": {
        "return min(GROUP, max(1, PAIRS // max(1, images))) | 1 + 1": (
            "images are taken in groups to save memory; the groups do not change what is found"
        ),
        "MAX_DETECTIONS = (1, 10, 100) | 10 + 1": "no result reports recall at 10 detections",
    },
    "decode": {
        'graph.op("Gather", [picked, column], (-1, 4), axis=0), | without -': (
            "the number of boxes that is stated of a value, which no reader of the graph needs"
        ),
        'graph.op("Gather", [labels, column], (-1,), axis=0), | without -': (
            "the number of boxes that is stated of a value, which no reader of the graph needs"
        ),
    },
}
"""Why a mutant of a module cannot be killed, or is not, by its line and what was changed in it."""

Replace = Callable[[], None]
SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


def faults(tree: ast.Module) -> Iterator[tuple[str, Replace]]:
    """Yield every fault that can be put into a module: where it is, and what puts it there."""
    ignored = set()
    for node in ast.walk(tree):  # annotations, decorators and docstrings are no behaviour
        parts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        for part in (*parts, *getattr(node, "decorator_list", ())):
            ignored |= {id(n) for n in ast.walk(part)} if part is not None else set()
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            ignored.add(id(node.value))
    for node in ast.walk(tree):
        if id(node) in ignored:
            continue
        where = f"{getattr(node, 'lineno', 0)}:{getattr(node, 'col_offset', 0)}"
        if isinstance(node, ast.Compare):
            for index, op in enumerate(node.ops):
                if type(op) in SWAPPED:
                    yield _named(where, op), _set_item(node.ops, index, SWAPPED[type(op)]())
        elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in SWAPPED:
            yield _named(where, node.op), _set_field(node, "op", SWAPPED[type(node.op)]())
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            twice = ast.UnaryOp(ast.Not(), node.operand)
            yield f"{where} without not", _set_field(node, "operand", twice)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield f"{where} without -", _set_field(node, "op", ast.UAdd())
        elif isinstance(node, ast.If | ast.IfExp | ast.While):
            negated = ast.UnaryOp(ast.Not(), node.test)
            yield f"{where} if not", _set_field(node, "test", negated)
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield f"{where} {not node.value}", _set_field(node, "value", not node.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            yield f"{where} {node.value} + 1", _set_field(node, "value", node.value + 1)


def _named(where: str, op: ast.AST) -> str:
    return f"{where} {type(op).__name__} to {SWAPPED[type(op)].__name__}"


def _set_item(items: list[Any], index: int, value: object) -> Replace:
    return lambda: items.__setitem__(index, value)


def _set_field(node: ast.AST, name: str, value: object) -> Replace:
    return lambda: setattr(node, name, value)


def mutated(source: str, number: int) -> tuple[str, ast.Module]:
    """Return a module with its fault of that number, and what the fault is."""
    tree = ast.parse(source)
    name, put = list(faults(tree))[number]
    put()
    return f"{number} at {name}", ast.fix_missing_locations(tree)


class Mutant(importlib.machinery.SourceFileLoader):
    """Loads a module with a fault in it."""

    def __init__(self, name: str, path: str, tree: ast.Module) -> None:
        """Take the module's name and file, and its faulty syntax tree."""
        super().__init__(name, path)
        self.tree = tree

    def get_code(self, fullname: str) -> CodeType:
        """Compile the faulty tree, never a cached file."""
        return compile(self.tree, self.path, "exec")


class Finder(importlib.abc.MetaPathFinder):
    """Finds one module in its faulty form."""

    def __init__(self, name: str, loader: Mutant) -> None:
        """Take the module's name and what loads it."""
        self.name, self.loader = name, loader

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return how the module is loaded; None for every other."""
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(
            fullname, self.loader.path, loader=self.loader
        )


def passes(subject: Subject, tree: ast.Module | None) -> bool:
    """Return whether the subject's tests pass in a forked process, with a faulty module or none."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
            if tree is not None:
                name = subject.path.removesuffix(".py").replace("/", ".")
                loader = Mutant(name, str(ROOT / subject.path), tree)
                sys.meta_path.insert(0, Finder(name, loader))
            import pytest

            chosen = ["-k", subject.keyword] if subject.keyword else []
            marks = "not slow and not gpu and not network and not alone"
            plugins = ["-p", "no:cacheprovider", "-p", "no:xdist"]
            code = pytest.main(["-q", "-x", *plugins, "-m", marks, *chosen, *subject.tests])
        finally:
            os._exit(int(code))
    _, status = os.waitpid(child, 0)
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0


def survivor(name: str, fault: str) -> dict[str, str | None]:
    """Return a mutant that survived, with its line and why."""
    _, _, where, *change = fault.split(" ")
    lines = (ROOT / SUBJECTS[name].path).read_text(encoding="utf-8").splitlines()
    line = lines[int(where.partition(":")[0]) - 1].strip()
    reason = REASONS.get(name, {}).get(f"{line} | {' '.join(change)}")
    return {"fault": fault, "line": line, "reason": reason}


def summary(modules: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what all modules have together, and the survivors of each."""
    killed = sum(len(module["killed"]) for module in modules.values())
    return {
        "modules": modules,
        "killed": killed,
        "made": killed + sum(len(module["survived"]) for module in modules.values()),
        "survivors": {
            name: [survivor(name, fault) for fault in module["survived"]]
            for name, module in modules.items()
            if module["survived"] and name in SUBJECTS
        },
        "date": time.strftime("%Y-%m-%d"),
    }


def version_of(subject: Subject, seed: int) -> str:
    """Return a hash of a module, its tests and the seed of its mutants."""
    found = hashlib.sha256(str(seed).encode())
    for path in (subject.path, *subject.tests):
        found.update((ROOT / path).read_bytes())
    return found.hexdigest()[:16]


def main() -> None:
    """Run the mutants that have not been run; write and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=40, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=1, help="of which mutants are drawn")
    parser.add_argument("--only", choices=SUBJECTS, action="append")
    parser.add_argument("--minutes", type=float, default=1e9)
    given = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    import cv2  # noqa: F401
    import onnxruntime  # noqa: F401
    import pandas  # noqa: F401
    import scipy.optimize  # noqa: F401
    import torch

    torch.set_num_threads(1)
    ends = time.monotonic() + 60 * given.minutes
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"modules": {}}
    for name in given.only or SUBJECTS:
        subject = SUBJECTS[name]
        source = (ROOT / subject.path).read_text(encoding="utf-8")
        total = len(list(faults(ast.parse(source))))
        drawn = random.Random(given.seed).sample(range(total), min(given.each, total))
        done = results["modules"].get(name, {})
        if done.get("version") != version_of(subject, given.seed):
            done = {"path": subject.path, "version": version_of(subject, given.seed), "of": total}
            done |= {"killed": [], "survived": []}
            if not passes(subject, None):
                sys.exit(f"{name}: its tests fail without any mutant")
        known = {*done["killed"], *done["survived"]}
        for number in drawn:
            if time.monotonic() > ends:
                break
            fault, tree = mutated(source, number)
            if fault in known:
                continue
            survived = passes(subject, copy.deepcopy(tree))
            done["survived" if survived else "killed"].append(fault)
            print(f"{name} {fault}: {'SURVIVED' if survived else 'killed'}", file=sys.stderr)
            results["modules"][name] = done
            RESULTS.write_text(
                json.dumps(summary(results["modules"]), indent=1) + "\n", encoding="utf-8"
            )
    found = summary(results["modules"])
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: found[key] for key in ("killed", "made", "date")}))


if __name__ == "__main__":
    main()
