"""The README's commands: every one parses, and the first ones run, word for word."""

import re
import shlex
from pathlib import Path

import pytest

from heat.cli import app
from tests.command_line import run

README = Path(__file__).resolve().parent.parent / "README.md"


def commands() -> list[str]:
    """Return the `heat` commands of the README's code blocks, without comments."""
    text = README.read_text(encoding="utf-8")
    lines = []
    for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.split("  #")[0].strip()
            lines += [command] if command.startswith("heat ") else []
            # torchrun -m heat, and the like
            lines += [f"heat {rest}" for rest in re.findall(r"-m heat (.*)", command)]
    return lines


@pytest.mark.parametrize("line", commands())
def test_every_command_parses(line: str) -> None:
    tokens = [token for token in shlex.split(line)[1:] if token != "..."]
    app.parse_args(tokens, exit_on_error=False, print_error=False)


def test_commands_are_found() -> None:
    found = commands()
    assert len(found) > 40 and "heat thin --target-fps 24" in found


def test_what_needs_no_device_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a reader tries it: synthetic data, a look at it, an architecture, the devices."""
    monkeypatch.chdir(tmp_path)
    code, _, errors = run("data", "shapes", "DIR", "--train", 4, "--val", 2)
    assert code == 0, errors
    for line in commands():
        if line.startswith(("heat data check", "heat describe", "heat devices")):
            code, _, errors = run(*shlex.split(line)[1:])
            assert code == 0, (line, errors)
