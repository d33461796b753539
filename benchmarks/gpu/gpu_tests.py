"""Stage 2: the tests that need a GPU, `pytest -m gpu`; in a rehearsal on the CPU.

Warnings are no errors here: the machine has other versions of the packages.
"""

import os
import re
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

from stage import Stage

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Run them; what was run before the time was over counts too."""
    stage = Stage("gpu_tests")
    command = [
        sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-W", "default",
        "-p", "no:cacheprovider", "tests/test_gpu.py",
    ]  # fmt: skip
    environment = {**os.environ, **({"HEAT_REHEARSE": "1"} if stage.rehearse else {})}
    log = stage.out / "pytest.txt"
    code = None
    with log.open("w", encoding="utf-8") as stream, suppress(subprocess.TimeoutExpired):
        code = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT,
            check=False, timeout=max(1.0, stage.left_s),
        ).returncode  # fmt: skip
    text = log.read_text(encoding="utf-8", errors="replace")
    ran = re.findall(r"^(tests/\S+::.*?) (PASSED|FAILED|SKIPPED|ERROR)\b", text, re.M)
    counts = Counter(state.lower() for _, state in ran)
    failed = [name for name, state in ran if state in ("FAILED", "ERROR")]
    stage.leave(code=code, counts=counts, failed=failed, end=text.splitlines()[-3:])
    if not counts["passed"]:
        raise SystemExit(f"no GPU test passed: {dict(counts)}")
    if code:
        raise SystemExit(f"pytest -m gpu ended with {code}: {failed[:3]}")
    if code is None:
        raise SystemExit(f"pytest -m gpu did not end in time: {dict(counts)}")


if __name__ == "__main__":
    main()
