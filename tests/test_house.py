"""Rules of the house: public names, and the texts that are joined into programs."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from supernet import version

ROOT = Path(__file__).resolve().parent.parent


def test_public_names() -> None:
    import heat

    commands = [
        "build",
        "evaluate",
        "export",
        "fleet",
        "profile",
        "report",
        "supernet",
        "thin",
        "train",
    ]
    assert sorted(heat.__all__) == sorted(["__version__", "load", *commands])
    for name in commands:
        assert callable(getattr(heat, name)) and getattr(heat, name).__doc__


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


def test_no_photographs_of_data_sets_are_kept() -> None:
    """They are not ours to publish: figures are vector graphics, reports hold no images."""
    kept = ROOT / "benchmarks" / "results"
    images = [p for p in kept.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")]
    assert [path for path in images if "generated" not in path.parts] == []
    for path in kept.rglob("*.html"):
        assert "data:image/" not in path.read_text(encoding="utf-8"), path


def test_every_package_is_shipped() -> None:
    """`pyproject.toml` names each folder of modules, or an installed HEAT lacks it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = set(project["tool"]["setuptools"]["packages"])
    tops = ("heat", "supernet", "latency_tables", "deploy")
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in tops
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert shipped == found


def test_a_build_names_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a checkout git is asked; in an installed package a file has the answer."""
    found = version.commit_of(ROOT)
    if (ROOT / ".git").exists():
        assert found is not None and len(found.rstrip("+")) == 12
    assert version.commit_of(tmp_path) is None
    monkeypatch.setattr(version, "COMMIT_FILE", tmp_path / "commit.txt")
    (tmp_path / "commit.txt").write_text("0123456789ab\n")
    assert version.version_line() == f"{version.__version__} (0123456789ab)"
