"""Rules of the house: who may import whom, and how long a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "supernet": {"supernet"},
    "deploy": {"deploy", "supernet"},
    "latency_tables": {"latency_tables", "deploy", "supernet"},
    "heat": {"heat", "latency_tables", "deploy", "supernet"},
}
TORCH_FREE = (
    "deploy/detect.py",
    "deploy/runtimes.py",
    "supernet/avif.py",
    "supernet/errors.py",
    "supernet/letterbox.py",
)
PROBE = ("batch", "fresh", "lock", "machine", "measure", "probe")
"""Modules of `latency_tables` that a probe carries to devices without torch."""
TORCH_FREE_IMPORTS = {"supernet.errors", "supernet.letterbox"}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Return the absolute names of imported modules of ours."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return {name for name in names if name.split(".")[0] in MAY_IMPORT}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_down(package: str) -> None:
    for path in sources(package):
        tops = {name.split(".")[0] for name in imported(path)}
        assert tops <= MAY_IMPORT[package], path


@pytest.mark.parametrize("name", TORCH_FREE)
def test_the_runtime_side_is_light(name: str) -> None:
    path = ROOT / name
    assert imported(path) <= TORCH_FREE_IMPORTS
    assert "torch" not in {
        alias.name.split(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import)
        for alias in node.names
    }


@pytest.mark.parametrize("name", PROBE)
def test_the_probe_is_light(name: str) -> None:
    """At the top of its files it imports itself, Python's own library, numpy and the runtimes."""
    import sys

    allowed = {"deploy.runtimes", "deploy.bench", "supernet.errors", "numpy"}
    for node in ast.parse((ROOT / "latency_tables" / f"{name}.py").read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.module in PROBE
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
            for module in found:
                top = str(module).split(".")[0]
                assert module in allowed or top in sys.stdlib_module_names, module


def test_files_are_short() -> None:
    for package in (*MAY_IMPORT, "tests"):
        for path in sources(package):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            assert lines <= 500, f"{path.name} has {lines} lines: one idea per file"


def test_no_grab_bags() -> None:
    for package in MAY_IMPORT:
        for path in sources(package):
            assert path.stem not in {"utils", "util", "misc", "common", "helpers"}


def test_public_names() -> None:
    import heat
    from supernet.operators import OPERATORS

    assert heat.__all__ == ["__version__", "load"]
    assert len(OPERATORS) == 26


def test_a_shadowing_module_is_refused(tmp_path: Path) -> None:
    """A user's own deploy.py is named, and not executed."""
    (tmp_path / "deploy.py").write_text("raise SystemExit('executed')")
    done = subprocess.run(
        [sys.executable, "-c", "import heat"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "HEAT needs its own package 'deploy'" in done.stderr and "executed" not in done.stderr


def test_files_that_are_joined_share_no_names() -> None:
    """The probe and a bundle's script are several files in one namespace."""
    from deploy import standalone
    from latency_tables import pack

    for parts in (pack.PARTS, standalone.PARTS, standalone.GPU_PARTS):
        seen: dict[str, str] = {}
        for part in parts:
            tree = ast.parse(Path(str(part.__file__)).read_text(encoding="utf-8"))
            for node in tree.body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    names = [node.name]
                elif isinstance(node, ast.Assign | ast.AnnAssign):
                    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                    names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
                else:
                    continue
                for name in names:
                    assert name not in seen, f"{name} in {part.__name__} and {seen[name]}"
                    seen[name] = part.__name__
