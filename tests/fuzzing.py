"""Broken files for every reader: valid ones, mutated at random but repeatably.

A reader returns a value or raises a `HeatError` of one line; anything else is a finding. Used by
`test_fuzzing.py` for some thousand cases, and by `benchmarks/fuzz.py` for as many as asked for.
"""

import contextlib
import io
import random
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from supernet.errors import HeatError
from tests.fuzzed_readers import READERS, Reader
from tests.mutating import HOSTILE, mutated

LONGEST_S = 10
"""Seconds after which a reader hangs."""


@contextlib.contextmanager
def no_longer_than(seconds: int) -> Iterator[None]:
    """Raise `TimeoutError` where the block takes longer."""

    def hangs(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def finding(reader: Reader, folder: Path) -> str | None:
    """Read a case, and return what is wrong with how that ends; None where all is well."""
    try:
        with (
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
            no_longer_than(LONGEST_S),
        ):
            warnings.simplefilter("ignore")
            reader.read(folder)
    except HeatError as error:
        lines = str(error).strip().splitlines()
        return None if len(lines) == 1 else f"a message of {len(lines)} lines: {lines[:2]}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return None


def cases(
    name: str, count: int, folder: Path, *, seed: int = 0
) -> Iterator[tuple[int, str, bytes]]:
    """Yield the findings of a reader: the number of the case, what is wrong, the file."""
    reader = READERS[name]
    reader.write(folder)
    originals = {file: (folder / file).read_bytes() for file in reader.files}
    problem = finding(reader, folder)
    if problem is not None and not problem.startswith("a message"):
        yield -1, problem, b""
    hostile = [(file, data) for file in reader.files for data in HOSTILE]
    for number in range(count):
        if number < len(hostile):
            file, data = hostile[number]
        else:
            chance = random.Random(f"{seed} {name} {number}")
            file = chance.choice(reader.files)
            data = mutated(originals[file], chance)
        (folder / file).write_bytes(data)
        problem = finding(reader, folder)
        (folder / file).write_bytes(originals[file])
        if problem is not None:
            yield number, problem, data
