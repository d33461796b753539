"""A process that burns a core in bursts, as other work on a shared machine does.

    python benchmarks/disturber.py --seed 0

Bursts of 0.5 to 3 s, pauses of 1 to 5 s, drawn anew each time: about a third of one core. It ends
with the process that started it. `beside(True)` runs it for as long as a `with` block lasts.
"""

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BURST_S = (0.5, 3.0)
PAUSE_S = (1.0, 5.0)


@contextmanager
def beside(disturb: bool, seed: int = 0) -> Iterator[None]:
    """Run the disturber while the block lasts, if `disturb` is set."""
    if not disturb:
        yield
        return
    command = [sys.executable, str(Path(__file__)), "--seed", str(seed)]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Burn in bursts until the parent process has ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    rng = random.Random(parser.parse_args().seed)
    parent = os.getppid()
    while os.getppid() == parent:
        end = time.monotonic() + rng.uniform(*BURST_S)
        while time.monotonic() < end:
            for _ in range(10_000):
                pass
        time.sleep(rng.uniform(*PAUSE_S))


if __name__ == "__main__":
    main()
