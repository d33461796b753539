"""Some thousand broken files: each is a value or one line of error, never anything else."""

from pathlib import Path

import pytest

from tests.fuzzing import READERS, cases

CASES = 200
"""Of each reader; `benchmarks/fuzz.py` runs as many as asked for."""


@pytest.mark.parametrize("name", READERS)
def test_a_broken_file_is_a_value_or_one_line(name: str, tmp_path: Path) -> None:
    found = [(number, problem) for number, problem, _ in cases(name, CASES, tmp_path)]
    assert found == []
