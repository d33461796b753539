"""Some thousand broken files: each is a value or one line of error, never anything else."""

import json
from pathlib import Path

import pytest

from deploy.edge.detect import Bundle
from supernet.errors import BundleError
from tests.fuzzed_readers import READERS
from tests.fuzzing import cases

CASES = 180
"""Of each reader; `benchmarks/fuzz.py` runs as many as asked for."""


@pytest.mark.parametrize("name", READERS)
def test_a_broken_file_is_a_value_or_one_line(name: str, tmp_path: Path) -> None:
    found = [(number, problem) for number, problem, _ in cases(name, CASES, tmp_path)]
    assert found == []


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "a/../../b", "a\0b"])
@pytest.mark.parametrize("key", ["model", "files"])
def test_a_card_names_no_file_outside_its_folder(name: str, key: str, tmp_path: Path) -> None:
    card = {
        "format": 1, "model": "model.onnx", "runtime": "onnxruntime", "precision": "f32",
        "threads": 1, "names": ["a"], "input": {"height": 64, "width": 96}, "files": {},
    }  # fmt: skip
    card[key] = {name: "0" * 64} if key == "files" else name
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(BundleError, match="is outside its folder"):
        Bundle(tmp_path)
