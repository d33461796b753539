import subprocess
import sys
from pathlib import Path


def test_one_file_and_one_row_are_enough() -> None:
    """A new operator is priced, counted, thinned, inherited and exported."""
    command = [sys.executable, "-m", "tests.toy_operator"]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
