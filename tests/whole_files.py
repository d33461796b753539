"""Whether the files of a folder are whole."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
from safetensors.torch import load_file

from deploy.whole_folder import SUFFIX


def half_written(folder: Path) -> list[str]:
    """Return the files that are not whole, each with what is wrong; hidden ones are not read."""
    wrong = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not path.is_file():
            continue
        try:
            read = WHOLE.get(path.suffix)
            if read is not None:
                read(path)
        except Exception as error:
            wrong.append(f"{path.relative_to(folder)}: {type(error).__name__}: {error}")
    return wrong


def remains(folder: Path) -> list[str]:
    """Return what writing left under temporary names."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob(".*"))
        if path.suffix not in (".lock", ".part") and not path.name.endswith(f".old.{SUFFIX}")
    ]


def _csv(path: Path) -> None:
    with path.open(newline="") as stream:
        lines = [line for line in stream if not line.startswith("#")]
    rows = list(csv.reader(lines))
    assert rows and {len(row) for row in rows} == {len(rows[0])}, "rows of different lengths"
    assert lines[-1].endswith("\n"), "the last line is cut"


def _image(path: Path) -> None:
    assert cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR) is not None, "no image"


def _ends_with(end: str) -> Callable[[Path], None]:
    def check(path: Path) -> None:
        assert path.read_text().rstrip().endswith(end), f"does not end with {end}"

    return check


WHOLE: Mapping[str, Callable[[Path], object]] = {
    ".json": lambda path: json.loads(path.read_text()),
    ".jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
    ".csv": _csv,
    ".safetensors": load_file,
    ".pt": lambda path: torch.load(path, weights_only=True),
    ".onnx": lambda path: onnx.checker.check_model(onnx.load(path)),
    ".jpg": _image,
    ".png": _image,
    ".svg": _ends_with("</svg>"),
    ".html": _ends_with("</html>"),
}
"""How a file of each kind is read to its end."""
