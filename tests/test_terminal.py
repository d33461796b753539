"""The command line as people meet it: in a terminal, in a pipe, with typing errors."""

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import heat.cli
from heat.cli import COMMANDS, app, main
from heat.commands.help_text import flowing
from heat.commands.outcomes import summary
from heat.commands.start import init
from supernet.errors import did_you_mean
from supernet.progress import Progress, begin, stages
from tests.command_line import fails, run

MOST_HELP_S = 0.3
PROMPT_S = 60.0


def in_terminal(words: Sequence[object], answers: Sequence[str] = ()) -> tuple[int, str]:
    """Run `heat` in a pseudo-terminal, typing an answer at each prompt; return what was shown."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, "-m", "heat", *map(str, words)],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
    )  # fmt: skip
    os.close(theirs)
    shown, left, end = "", list(answers), time.monotonic() + PROMPT_S
    while time.monotonic() < end:
        if not select.select([ours], [], [], 0.2)[0]:
            continue
        try:
            text = os.read(ours, 65536).decode(errors="replace")
        except OSError:  # the other end is closed
            break
        if not text:
            break
        shown += text
        if left and shown.endswith(": "):
            os.write(ours, (left.pop(0) + "\n").encode())
    code = process.wait(PROMPT_S)
    os.close(ours)
    return code, shown.replace("\r\n", "\n")


def test_init_asks_three_questions_and_prints_the_command(shapes: Path) -> None:
    answers = ["/no/such", str(shapes), "cpu-17", "", "many", "24"]
    _, shown = in_terminal(["init"], answers)
    assert shown.rstrip().endswith(f"heat build --data {shapes} --target-fps 24"), shown
    assert "24 training images" in shown and "did you mean cpu-i7?" in shown
    assert "'many' is no number" in shown and "Traceback" not in shown


def test_init_asks_for_what_a_gpu_executes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Typed(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Typed("\nv100\n24\n"))
    monkeypatch.setattr("sys.stderr", Typed())
    monkeypatch.setattr("deploy.edge.engine.gpu_here", lambda: "V100")
    result = init()
    assert result is not None and result["command"].endswith("--device v100 --format tensorrt")


def test_init_without_a_terminal_is_one_line() -> None:
    assert "needs a terminal: heat build --data DIR" in fails(2, "init")


def test_a_terminal_shows_no_json_unless_it_is_asked_for(tmp_path: Path) -> None:
    drawn = ["data", "shapes", "--train", 1, "--val", 1]
    code, shown = in_terminal([*drawn, tmp_path / "a"])
    assert code == 0 and "{" not in shown
    code, shown = in_terminal([*drawn, tmp_path / "b", "--json"])
    assert code == 0 and json.loads(shown.splitlines()[-1])["train"] == 1


def test_a_bar_in_a_terminal_names_the_stage_and_what_is_decided() -> None:
    program = (
        "from supernet.progress import Progress, begin, stages\n"
        "with stages('plan', 'thin'):\n"
        "    begin('thin')\n"
        "    with Progress('search', 100) as bar, Progress('profile', 2) as inner:\n"
        "        inner.advance('first', 2)\n"
        "        bar.reach(40, 'WR S4')\n"
        "        bar.reach(30, 'WR S4')\n"
    )
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=theirs, stderr=theirs, check=False,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )  # fmt: skip
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", os.read(ours, 65536).decode())
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 0, shown
    assert "== 2/2 thin" in shown and "2/2 thin profile" in shown and "40/100" in shown
    assert "WR S4" in shown and "ETA" in shown


def test_without_a_terminal_bars_are_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with stages("plan", "train"):
        begin("train")
        with Progress("images", 2) as bar:
            bar.advance("one")
            bar.advance("two")
    assert capsys.readouterr().err.splitlines() == ["== 2/2 train", "images: 2/2, ETA 0 s  two"]


def test_quiet_keeps_warnings_and_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, result, errors = run("data", "shapes", tmp_path / "set", "--train", 2, "--val", 1)
    assert code == 0, errors
    code, result, errors = run("data", "check", tmp_path / "set", "--quiet")
    assert code == 0 and result["splits"] and errors == ""
    assert fails(2, "--quiet", "report", "--out", tmp_path).startswith("error: ")

    def warns() -> None:
        print("table\nwarning: slow\n", file=sys.stderr)

    monkeypatch.setattr(heat.cli, "app", lambda *_, **__: warns())
    assert run("devices", "--quiet")[2] == "warning: slow\n"


def test_a_result_that_cannot_be_printed_is_one_line() -> None:
    command = [sys.executable, "-m", "heat", "describe", "pico", "--quiet"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: the result cannot be written: No space left on device\n"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, ""), "nobody reads it"


def test_a_summary_has_the_facts_of_its_command() -> None:
    result = {"target_fps": 24.0, "met": True, "space": {}, "measured_fps": 25.125}
    lines = summary("thin", result).splitlines()
    assert [line.split()[0] for line in lines] == ["target", "measured", "met"]
    assert "25.12" in lines[1] and "space" not in str(lines)
    assert summary("describe", result) == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["thn"], 'Did you mean "thin"? Available commands: init, build'),
        (["thin", "--target-fsp", "1"], "Did you mean --target-fps? (heat thin --help)"),
        (["export", "--format", "onx"], 'Did you mean "onnx"?'),
        (["data", "chekc", "x"], 'Did you mean "check"?'),
        (["describe", "meduim"], "unknown preset 'meduim' (did you mean medium?)"),
        (["describe", "detr-r5O"], "(did you mean detr-r50?)"),
        (["thin", "--target-fps", "1", "--precision", "f32,bf61"], "'bf61' (did you mean bf16?)"),
        (["thin", "--target-fps", "1", "--device", "cpu:openvin"], "(did you mean openvino?)"),
        (["profile", "--device", "gtx1080ti"], "(did you mean gtx-1080ti?)"),
    ],
)
def test_a_typing_error_is_answered_with_what_was_meant(words: list[str], message: str) -> None:
    assert message in fails(2, *words)


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert did_you_mean("zebra", ["cpu", "cuda"]) == "" and did_you_mean("x", []) == ""
    assert did_you_mean("Red Cel", ["red cell"]) == " (did you mean red cell?)"


def test_every_command_has_an_example_in_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    for group, function, name, example in COMMANDS:
        words = [*group.name, name or function.__name__]
        words = words[1:] if words[0] == "heat" else words
        assert example.split()[1 : len(words) + 1] == words
        capsys.readouterr()
        assert main([*words, "--help"]) == 0
        assert f"Example: {example}" in capsys.readouterr().out
        parsed = app.parse_args(example.split(" > ")[0].split()[1:], print_error=False)
        assert parsed[0] is function, example


def test_help_breaks_lines_where_the_terminal_ends(capsys: pytest.CaptureFixture[str]) -> None:
    def documented() -> None:
        """Short.

        A paragraph of
        two lines.

        Args:
            one: It is
                explained.
            two: Another.
        """

    lines = ["Short.", "", "A paragraph of two lines.", "", "Args:"]
    lines += ["    one: It is explained.", "    two: Another."]
    assert flowing(flowing(documented)).__doc__ == "\n".join(lines)
    assert main(["train", "--help"]) == 0
    words = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    assert "or checkpoint of HEAT, an ONNX file, or a transformers folder." in words


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_the_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "thin" in script and "target-fps" in script


@pytest.mark.alone
def test_help_is_quick() -> None:
    def cpu_s() -> float:
        before = os.times()
        subprocess.run([sys.executable, "-m", "heat", "--help"], capture_output=True, check=True)
        after = os.times()
        return (after.children_user - before.children_user) + (
            after.children_system - before.children_system
        )

    assert min(cpu_s() for _ in range(5)) <= MOST_HELP_S
