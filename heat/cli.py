"""The `heat` command: parse, call one public function, print.

People read stderr, and a summary on stdout where that is a terminal; programs read the last line of
stdout, one JSON object. Exit codes: 0 success, 1 a fault of ours, 2 a mistake in the request, 3 a
promise not kept, 130 interrupted, 143 terminated.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from cyclopts import App, CycloptsError, Parameter

from supernet.errors import HeatError, out_of_memory, refusal
from supernet.version import version_line

from .commands import (
    build,
    data,
    fleet,
    images,
    look,
    models,
    pretraining,
    search,
    start,
    thinning,
    training,
)
from .commands.help_text import flowing
from .commands.interrupts import ending_soon, line_of
from .commands.options import whole
from .commands.outcomes import summary
from .views.quiet import Quiet

ANYWHERE = (
    "With every command: --quiet, no tables and bars, only warnings and errors; --json, the JSON "
    "in a terminal too, which otherwise shows a summary (a pipe always gets the JSON, as the last "
    "line of stdout; heat detect --json FILE writes a file).\n\n"
    "Shell completion: heat completion bash prints it, or zsh, or fish."
)

app = App(
    name="heat",
    version=version_line,
    help="Name a device and a frame rate, get an object detector that provably runs there.",
    help_format="plaintext",
    help_epilogue=ANYWHERE,
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(converter=whole),
)
data_app = App(
    name="data",
    help="Look at detection data, or make some.",
    help_epilogue="Example: heat data check cells",
    sort_key=100,
)


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print the completion script of a shell, to be put where that shell looks for it.

    bash: ~/.local/share/bash-completion/completions/heat. zsh: a file _heat in a folder of $fpath.
    fish: ~/.config/fish/completions/heat.fish.
    """
    print(app.generate_completion(prog_name="heat", shell=shell))


COMMANDS: tuple[tuple[App, Callable[..., object], str | None, str], ...] = (
    (app, start.init, None, "heat init"),
    (app, build.build, None, "heat build --data cells --target-fps 24 --minutes 30"),
    (app, search.profile, None, "heat profile --device cpu --runtime openvino --precision bf16"),
    (app, pretraining.pretrain, None, "heat pretrain --data IMAGES --architecture medium"),
    (app, search.supernet, None, "heat supernet --data cells --space midi --epochs 12"),
    (app, thinning.thin, None, "heat thin --target-fps 24"),
    (app, fleet.fleet, None, "heat fleet fleet.toml --data cells --space mini"),
    (app, training.train, None, "heat train --data cells --epochs 100"),
    (app, training.adopt, None, "heat adopt detr-r50.pth --data COCO --input-size 800x1344"),
    (app, data.label, None, "heat label photos --teacher heat-run/bundle-onnx --out labelled"),
    (app, models.evaluate, "eval", "heat eval --bundle heat-run/bundle-onnx --split val"),
    (app, models.export, None, "heat export --format openvino --precision bf16"),
    (app, images.detect, None, "heat detect heat-run/bundle-onnx photos/ --save detections"),
    (app, images.bench, None, "heat bench heat-run/bundle-onnx other.onnx --rounds 15"),
    (app, look.report, None, "heat report"),
    (app, look.describe, None, "heat describe medium --input-size 832x1344"),
    (app, look.devices, None, "heat devices"),
    (app, look.doctor, None, "heat doctor --device v100"),
    (app, completion, None, "heat completion bash > heat-completion.bash"),
    (data_app, data.check, None, "heat data check cells"),
    (data_app, data.convert, None, "heat data convert voc-folder coco-folder --to coco"),
    (data_app, data.cells, None, "heat data cells cells --train 160 --val 40"),
    (data_app, data.shapes, None, "heat data shapes shapes --labels yolo"),
)
"""Every command, the name where it is not the function's, and an example for its help."""
for place, (group, function, name, example) in enumerate(COMMANDS):
    group.command(flowing(function), name=name, sort_key=place, help_epilogue=f"Example: {example}")
app.command(data_app)


SPIN_COUNT = "10000"
"""Looks of a waiting OpenMP thread before it sleeps; GNU's default is 300,000, milliseconds.

Training is as fast alone, and while another process has a core, a thread that waits for one that is
not running leaves its core sooner (`benchmarks/beside.py`). Results do not depend on it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    if "OMP_WAIT_POLICY" not in os.environ:  # before torch is imported, and for all child processes
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    words = list(sys.argv[1:] if arguments is None else arguments)
    quiet = _take(words, "--quiet")
    as_json = words[:1] != ["detect"] and _take(words, "--json")
    with contextlib.redirect_stderr(Quiet(sys.stderr)) if quiet else contextlib.nullcontext():
        return _run(words, as_json=as_json or not sys.stdout.isatty())


def _take(words: list[str], flag: str) -> bool:
    """Remove a flag from the words of a command, before any `--`; return whether it was there."""
    end = words.index("--") if "--" in words else len(words)
    if flag not in words[:end]:
        return False
    words.remove(flag)
    return True


def _run(words: Sequence[str], *, as_json: bool) -> int:
    """Run a command and print its result; every error is one line and an exit code."""
    try:
        with ending_soon():
            result = app(
                words, exit_on_error=False, print_error=False, result_action="return_value"
            )
    except CycloptsError as error:
        command, within = "", app
        for word in words[:2]:
            if word not in within:
                break
            command, within = f"{command} {word}".strip(), within[word]
        return _fail(
            f"{' '.join(str(error).split())} (heat {command} --help)".replace("  ", " "), 2
        )
    except HeatError as error:
        if error.result is not None:
            _show(words, error.result, as_json=as_json)
        return _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        return _fail(f"this command needs {package}: pip install 'heatdetr[build]'", 2)
    except KeyboardInterrupt as interrupt:
        return _fail(*line_of(interrupt))
    except Exception as error:
        shortage = out_of_memory(error)
        if shortage is not None:
            return _fail(shortage, 2)
        if isinstance(error, BrokenPipeError):  # nobody reads what a command prints
            _discard_stdout()
            return 0
        if isinstance(error, OSError):
            return _fail(refusal(error), 2)
        raise
    if isinstance(result, Mapping) and os.environ.get("RANK", "0") == "0":
        return _show(words, result, as_json=as_json)  # under torchrun once, not by every process
    return 0


def _show(words: Sequence[str], result: Mapping[str, object], *, as_json: bool) -> int:
    """Print a result; return 2 where it cannot be written, 0 also where nobody reads it."""
    try:
        text = json.dumps(result) if as_json else summary(words[0], result)
        print(text, end="\n" if as_json else "", flush=True)
    except OSError as error:
        _discard_stdout()
        if not isinstance(error, BrokenPipeError):
            return _fail(f"the result cannot be written: {error.strerror}", 2)
    return 0


def _discard_stdout() -> None:
    """Let go what is left in the buffer, which would fail again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code
