"""The `heat` command: parse, call one public function, print.

People read stderr; programs read the last line of stdout, one JSON object. Exit codes: 0 success,
1 a fault of ours, 2 a mistake in the request, 3 a promise not kept, 130 interrupted.
"""

import json
import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

from supernet.errors import HeatError, refusal
from supernet.version import version_line

from .commands import data, images, look, models, pretraining, search, thinning, training
from .commands.options import whole

app = App(
    name="heat",
    version=version_line,
    help="Name a device and a frame rate, get an object detector that provably runs there.",
    suppress_keyboard_interrupt=False,
    default_parameter=Parameter(converter=whole),
)
app.command(models.build)
app.command(search.profile)
app.command(pretraining.pretrain)
app.command(search.supernet)
app.command(thinning.thin)
app.command(training.train)
app.command(training.adopt)
app.command(data.label)
app.command(models.evaluate, name="eval")
app.command(models.export)
app.command(images.detect)
app.command(images.bench)
app.command(look.report)
app.command(look.describe)
app.command(look.devices)
app.command(look.doctor)
data_app = App(name="data", help="Look at detection data, or make some.")
data_app.command(data.check)
data_app.command(data.cells)
data_app.command(data.shapes)
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
    try:
        result = app(
            list(arguments) if arguments is not None else None,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except CycloptsError as error:
        return _fail(" ".join(str(error).split()) + " (heat --help)", 2)
    except HeatError as error:
        if error.result is not None:
            print(json.dumps(error.result))
        return _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        return _fail(f"this command needs {package}: pip install 'heatdetr[build]'", 2)
    except KeyboardInterrupt:
        return _fail(
            "interrupted; what was finished is kept: the same command goes on (train and supernet "
            "with --resume)",
            130,
        )
    except OSError as error:
        return _fail(refusal(error), 2)
    if isinstance(result, dict) and os.environ.get("RANK", "0") == "0":
        print(json.dumps(result))  # under torchrun once, not by every process
    return 0


def _fail(message: str, code: int) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code
