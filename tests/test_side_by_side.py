"""Models timed in turns, each in a process of its own."""

import json
from pathlib import Path

import pytest
import torch

from deploy.side_by_side import Entrant, race, ratio, throughput
from latency_tables.models import randomise
from supernet.architecture import Architecture
from supernet.detector import Detector
from supernet.errors import UserError
from tests.command_line import fails, run


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    folder = tmp_path_factory.mktemp("models")
    for name, width in (("narrow", 32), ("wide", 128)):
        torch.manual_seed(0)
        network = Detector(
            Architecture(
                widths=(width,) * 4, blocks=("R",) * 4, num_classes=2, input_size=(128, 128),
                t1_blocks=1, t2_blocks=1,
            )
        ).eval()  # fmt: skip
        randomise(network)
        found[name] = folder / f"{name}.onnx"
        found[name].write_bytes(network.to_onnx().SerializeToString())
    return found


def test_the_wider_network_takes_longer_in_every_runtime(models: dict[str, Path]) -> None:
    entrants = [
        Entrant(name=f"{name} {runtime}", model=path, runtime=runtime)
        for runtime in ("onnxruntime", "openvino")
        for name, path in models.items()
    ]
    laps = race(entrants, rounds=3, turn_seconds=0.05)
    assert [lap.name for lap in laps] == [entrant.name for entrant in entrants]
    for narrow, wide in (laps[:2], laps[2:]):
        assert ratio(wide, narrow) > 1.5
    for lap in laps:
        assert lap.p50_ms <= lap.p95_ms <= lap.p99_ms and len(lap.rounds_ms) == 3
        assert lap.peak_mb > 10 and lap.start_ms > 0 and lap.runs >= 3


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_throughput_counts_whole_frames(models: dict[str, Path], runtime: str) -> None:
    entrant = Entrant(name="narrow", model=models["narrow"], runtime=runtime)
    assert throughput(entrant, 2, seconds=0.3) > 1


def test_what_cannot_be_loaded_is_named(models: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(models["narrow"].read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cut: .*cannot load .*broken\.onnx"):
        race([Entrant(name="cut", model=broken, runtime="onnxruntime")])


def test_the_command(models: dict[str, Path], tmp_path: Path) -> None:
    picture = tmp_path / "race.svg"
    code, found, errors = run(
        "bench", *models.values(), "--rounds", 2, "--throughput", "--picture", picture
    )
    assert code == 0, errors
    rows = {row["model"]: row for row in found["models"]}
    assert rows["narrow"]["times_first"] == 1.0 and rows["wide"]["times_first"] > 1
    assert rows["wide"]["throughput_fps"] > 0 and json.dumps(found)
    assert picture.read_text().startswith("<?xml") and "side by side" in errors
    assert "which models" in fails(2, "bench")
    assert "neither a bundle" in fails(2, "bench", tmp_path / "model.pt")
    assert "no model at" in fails(2, "bench", tmp_path / "absent.onnx")
