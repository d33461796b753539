"""The commands of README and docs: every one parses, and the first ones run, word for word."""

import ast
import re
import shlex
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from heat.cli import app
from tests.command_line import run

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
TEXTS = (README, *sorted((ROOT / "docs").glob("*.md")))


@cache
def blocks(language: str) -> list[tuple[Path, str]]:
    """Return the code blocks of one language, each with its file."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
    return [
        (path, block)
        for path in TEXTS
        for block in pattern.findall(path.read_text(encoding="utf-8"))
    ]


@cache
def commands() -> list[str]:
    """Return the `heat` commands of the code blocks, each once, without comments."""
    lines = []
    for _, block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.split("  #")[0].strip()
            lines += [command] if command.startswith("heat ") else []
            # torchrun -m heat, docker run ... heat, and the like
            lines += [f"heat {rest}" for rest in re.findall(r"(?:-m|/work) heat (.*)", command)]
    return list(dict.fromkeys(lines))


@pytest.mark.parametrize("line", commands())
def test_every_command_parses(line: str) -> None:
    tokens = [token for token in shlex.split(line)[1:] if token != "..."]
    app.parse_args(tokens, exit_on_error=False, print_error=False)


def test_commands_are_found() -> None:
    found = commands()
    assert len(found) > 70 and "heat thin --target-fps 24" in found


def test_what_needs_no_device_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a reader tries it: synthetic data, a look at it, an architecture, the devices."""
    monkeypatch.chdir(tmp_path)
    code, _, errors = run("data", "shapes", "DIR", "--train", 4, "--val", 2)
    assert code == 0, errors
    for line in commands():
        if line.startswith(("heat data check DIR", "heat describe", "heat devices")):
            code, _, errors = run(*shlex.split(line)[1:])
            assert code == 0, (line, errors)


def test_python_in_the_texts_is_python() -> None:
    for path, block in blocks("python"):
        try:
            ast.parse(block)
        except SyntaxError as error:
            raise AssertionError(f"{path.name}: {error}\n{block}") from None


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_exist_in_the_repository(path: Path) -> None:
    """As somebody follows them who reads the files themselves; anchors are MkDocs's to check."""
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith(("http", "#")):
            assert (path.parent / target.partition("#")[0]).exists(), target


def test_files_that_the_docs_name_exist() -> None:
    folders = ("heat", "supernet", "latency_tables", "deploy", "benchmarks", "tests", "examples")
    for path in TEXTS:
        for name in re.findall(r"`([\w./-]+/[\w./-]*)`", path.read_text(encoding="utf-8")):
            if name.split("/")[0] in folders and "NAME" not in name:
                assert (ROOT / name).exists(), f"{path.name}: {name}"


@pytest.mark.skipif(not find_spec("mkdocs"), reason="pip install -e '.[docs]'")
def test_the_pages_are_built_without_a_warning(tmp_path: Path) -> None:
    """Strict: dead links, places that are not there, and anything loaded from elsewhere fail."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    index = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "fonts.googleapis" not in index and "cdn" not in index
