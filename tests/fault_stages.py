"""The commands that faults disturb.

Each `Stage` knows its command, the one that goes on, and its results as far as a repetition must
give the same.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from latency_tables.table_file import read_table

SIZE = ("--input-size", "64x96")


SPACE = ("--space", "micro", *SIZE, "--threads", "1", "--runtime", "onnxruntime")


DEVICE = ("--device", "cpu-i7")


QUICK = ("--epochs", "2", "--batch-size", "4")


Results = Mapping[str, object]


@dataclass(frozen=True)
class Stage:
    """A command, and what must be the same when it was disturbed."""

    name: str
    arguments: Callable[["Place"], Sequence[str]]
    results: Callable[["Place"], Results]
    goes_on: tuple[str, ...] = ()
    """Options of the command that goes on with it."""
    needs: tuple[str, ...] = ()
    """Stages that come before it."""

    def command(self, place: "Place", again: bool = False) -> list[str]:
        """Return the arguments of heat."""
        more = self.goes_on if again else ()
        return [*map(str, self.arguments(place)), *more]


@dataclass(frozen=True)
class Place:
    """A folder with the data, and the folder in which a scenario happens."""

    data: Path
    folder: Path

    @property
    def run(self) -> Path:
        """The workspace."""
        return self.folder / "run"

    @property
    def out(self) -> tuple[str, str]:
        """The option that names it."""
        return "--out", str(self.run)


def tensors(path: Path) -> dict[str, bytes]:
    """Return the bytes of the tensors of a checkpoint; its header has times in it."""
    return {key: value.numpy().tobytes() for key, value in load_file(path).items()}


def columns(path: Path, without: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a CSV file without the columns that are times."""
    with path.open(newline="") as stream:
        return [
            {k: v for k, v in row.items() if k not in without} for row in csv.DictReader(stream)
        ]


def _trained(folder: str) -> Callable[[Place], Results]:
    def results(place: Place) -> Results:
        own = place.run / folder
        pace = ("images_per_second", "memory_mb")
        return {
            "weights": tensors(own / "weights.safetensors"),
            "metrics": columns(own / "metrics.csv", pace),
            "recorded": folder in _stages(place),
        }

    return results


def _thinned(place: Place) -> Results:
    return {
        "ledger": columns(place.run / "thin" / "thinning.csv", ("seconds",)),
        "architecture": (place.run / "thin" / "architecture.json").read_text(),
        "fps": _stages(place)["thin"]["predicted_fps"],
    }


def _exported(place: Place) -> Results:
    bundle = place.run / "bundle-onnx"
    card = json.loads((bundle / "card.json").read_text())
    return {
        "files": sorted(path.name for path in bundle.iterdir()),
        "model": (bundle / "model.onnx").read_bytes(),
        "card": {key: card[key] for key in ("names", "input", "decode", "trained", "architecture")},
        "recorded": "export-onnx" in _stages(place),
    }


def _detected(place: Place) -> Results:
    found = place.folder / "found"
    records = json.loads((found / "detections.json").read_text())
    return {
        "records": [{**record, "latency_ms": 0, "saved": ""} for record in records],
        "images": {p.name: p.read_bytes() for p in sorted(found.iterdir()) if p.suffix == ".jpg"},
    }


def _profiled(place: Place) -> Results:
    """Return what does not depend on timings."""
    (path,) = (p for p in (place.run / "tables").glob("*.csv") if "estimate" not in p.name)
    return {
        "entries": sorted(map(str, read_table(path).rows)),
        "recorded": "profile" in _stages(place),
    }


def _built(place: Place) -> Results:
    """Return what does not depend on timings: on a busy machine the target may be missed."""
    return {"files": _exported(place)["files"], "recorded": "export-onnx" in _stages(place)}


def _drawn(place: Place) -> Results:
    folder = place.folder / "shapes"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _stages(place: Place) -> dict[str, Any]:
    return dict(json.loads((place.run / "run.json").read_text())["stages"])


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "draw",
            lambda place: ["data", "shapes", place.folder / "shapes", "--train", 6, "--val", 2],
            _drawn,
        ),
        Stage("profile", lambda place: ["profile", *SPACE, *place.out], _profiled),
        Stage(
            "estimate",
            lambda place: [
                "profile", *DEVICE, "--estimate", "--data", place.data, *SPACE, *place.out,
            ],
            lambda place: {"recorded": "profile" in _stages(place)},
        ),
        Stage(
            "supernet",
            lambda place: [
                "supernet", "--data", place.data, "--space", "micro", *SIZE, *QUICK, *place.out,
            ],
            _trained("supernet"),
            ("--resume",),
            ("estimate",),
        ),
        Stage(
            "thin",
            lambda place: [
                "thin", "--trust-table", "--target-fps", 550, "--ap-drop", "loss", *place.out,
            ],
            _thinned,
            (),
            ("estimate", "supernet"),
        ),
        Stage(
            "train",
            lambda place: [
                "train", "--data", place.data, *QUICK, "--eval-every", 1, *place.out,
            ],
            _trained("train"),
            ("--resume",),
            ("estimate", "supernet", "thin"),
        ),
        Stage(
            "export",
            lambda place: ["export", *place.out],
            _exported,
            (),
            ("estimate", "supernet", "thin", "train"),
        ),
        Stage(
            "detect",
            lambda place: [
                "detect", place.run / "bundle-onnx", place.data / "train", "--save",
                place.folder / "found", "--score", 0.01,
            ],
            _detected,
            (),
            ("estimate", "supernet", "thin", "train", "export"),
        ),
        Stage(
            "build",
            lambda place: [
                "build", "--data", place.data, "--target-fps", 20, "--threads", 1, "--minutes", 0.2,
                "--space", "micro", *SIZE, *place.out,
            ],
            _built,
        ),
    )
}  # fmt: skip
"""Of every kind that writes; in an order in which they can be run."""
