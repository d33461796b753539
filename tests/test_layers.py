"""Who may import whom: rooms in one order, no cycles, and two independent folders.

Every import counts, also one within a function.
"""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("heat", "latency_tables", "deploy", "supernet")

ROOMS = (
    "heat",
    "heat.__main__",
    "heat.cli",
    "heat.commands",
    "heat.stages",
    "heat.thinning",
    "heat.views",
    "heat.tables",
    "heat.workspace",
    "heat.records",
    "heat.spaces",
    "latency_tables",
    "latency_tables.probe",
    "deploy",
    "deploy.edge",
    "supernet.train",
    "supernet.counting",
    "supernet.network",
    "supernet.heatdetr",
    "supernet.heatdetr.operators",
    "supernet.detr",
    "supernet.attention",
    "supernet.graph",
    "supernet.data",
    "supernet.checkpoint",
    "supernet",
)
"""From top to bottom: a room imports only itself and rooms below it."""

ALONE = {
    "deploy.edge": {"supernet.errors", "supernet.image_header", "supernet.letterbox"},
    "latency_tables.probe": {"supernet.errors", "deploy.edge"},
}
"""Rooms that are carried to devices without torch, and what else of ours they may import."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def sources() -> dict[str, Path]:
    """Return every shipped module by its name."""
    return {name_of(p): p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))}


@cache
def imports(name: str) -> frozenset[str]:
    """Return what a module imports: modules of ours, and the first names of others."""
    path = sources()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = package.split(".")[: len(package.split(".")) - node.level + 1]
            parts = [*(up if node.level else []), *([node.module] if node.module else [])]
            base = ".".join(parts)
            modules = {f"{base}.{alias.name}" for alias in node.names} & sources().keys()
            names_too = len(modules) < len(node.names)
            found |= modules | ({base} if names_too else set())
    ours = {module for module in found if module in sources()}
    return frozenset(ours | {m.split(".")[0] for m in found - ours}) - {name}


def room_of(module: str) -> int:
    """Return the place in the order; a module belongs to the longest name that begins its own."""
    return ROOMS.index(max((room for room in ROOMS if within(module, room)), key=len))


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_down(package: str) -> None:
    for module in sources():
        if module.split(".")[0] == package:
            for target in imports(module) & sources().keys():
                assert room_of(module) <= room_of(target), f"{module} imports {target}"


def test_there_is_no_cycle() -> None:
    graph = {module: imports(module) & sources().keys() for module in sources()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(f"these import each other: {error.args[1]}") from None


def test_every_room_exists() -> None:
    for room in ROOMS:
        assert room in sources(), f"{room} is no room of the house"


@pytest.mark.parametrize("room", ALONE)
def test_what_is_carried_to_devices_stands_alone(room: str) -> None:
    """Followed from import to import: no torch, nothing else of ours."""
    todo = [module for module in sources() if within(module, room)]
    seen: set[str] = set()
    while todo:
        module = todo.pop()
        if module in seen or module not in sources():
            continue
        seen.add(module)
        assert "torch" not in imports(module), module
        todo.extend(imports(module))
    strange = {m for m in seen if not any(within(m, own) for own in (room, *ALONE[room]))}
    assert not strange


def test_files_are_short() -> None:
    for module, path in sources().items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 330, f"{module} has {lines} lines: one idea per file"
    for path in Path(__file__).parent.glob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 400, f"{path.name} has {lines} lines: one subject per file"


@pytest.mark.parametrize(("package", "most"), [("supernet", 16), ("heat", 10)])
def test_a_newcomer_sees_few_rooms(package: str, most: int) -> None:
    own = {m.split(".")[1] for m in sources() if m.startswith(f"{package}.")}
    assert len(own) <= most, sorted(own)


def test_no_grab_bags() -> None:
    for module in sources():
        name = module.rpartition(".")[2]
        assert name not in {"utils", "util", "misc", "common", "helpers"}, module
