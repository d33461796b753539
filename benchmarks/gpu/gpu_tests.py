"""Stage 2: the tests that need a GPU, `pytest -m gpu`; in a rehearsal on the CPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

from stage import Stage

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Run them."""
    stage = Stage("gpu_tests")
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    command.append("tests/test_gpu.py")
    environment = {**os.environ, **({"HEAT_REHEARSE": "1"} if stage.rehearse else {})}
    log = stage.out / "pytest.txt"
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT, check=False
        )
    text = log.read_text(encoding="utf-8")
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|error)", text)}
    failed = re.findall(r"^(?:FAILED|ERROR) (.*)$", text, re.M)
    stage.leave(code=done.returncode, counts=counts, failed=failed, end=text.splitlines()[-3:])
    if not counts.get("passed"):
        raise SystemExit(f"no GPU test ran: {counts}")
    if done.returncode:
        raise SystemExit(f"pytest -m gpu ended with {done.returncode}: {failed[:3]}")


if __name__ == "__main__":
    main()
