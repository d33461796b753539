"""One training for all frame rates: elastic supernets, what thinning takes of them, fleets."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from deploy.edge.ladder import read_ladder
from heat.thinning.source import load_elastic
from heat.workspace import Workspace
from supernet.checkpoint import read_info, save_checkpoint
from supernet.data.coco import load_split
from supernet.heatdetr.inherit import order_channels
from supernet.train.elastic_task import ElasticTask
from supernet.train.loop import run_task
from supernet.train.recipes import recipe
from supernet.train.running import Running
from tests.command_line import fails, run
from tests.test_elastic import make, members_of

SIZE = ["--input-size", "96x128", "--space", "micro", "--output-stride", 16, "--epochs", 1]
HERE = ["--device", "cpu", "--runtime", "onnxruntime", "--threads", 1]


@pytest.fixture(scope="module")
def trained(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with an elastic supernet that was hardly trained, and a network of it."""
    out = tmp_path_factory.mktemp("elastic") / "run"
    code, result, errors = run(
        "supernet", "--data", shapes, *SIZE, "--elastic", "--elastic-epochs", 1, "--out", out
    )
    assert code == 0, errors
    assert result["networks"] == len(
        json.loads((out / "elastic" / "plan.json").read_text())["networks"]
    )
    code, _, errors = run("thin", "--target-fps", 1, *HERE, "--out", out)
    assert code == 0, errors
    return out


@pytest.fixture
def workspace(trained: Path, tmp_path: Path) -> Path:
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    return out


def test_a_thinned_network_has_weights_of_its_own(workspace: Path) -> None:
    info = read_info(workspace / "thin" / "weights.safetensors")
    assert info.facts["inherited"] == "elastic supernet"
    assert 0 <= float(str(info.facts["ap"])) <= 1
    found = json.loads((workspace / "run.json").read_text())["stages"]["thin"]
    assert found["inherited"] == "elastic supernet"
    supernet = load_elastic(Workspace(workspace))
    assert supernet is not None and supernet.elastic
    weights = load_file(workspace / "thin" / "weights.safetensors")
    assert torch.equal(weights["units.head.cls.weight"], supernet.units["head"].cls.weight)


def test_it_is_evaluated_and_polished_without_a_training(workspace: Path, shapes: Path) -> None:
    code, result, errors = run("eval", "--data", shapes, "--out", workspace)
    assert code == 0, errors
    assert result["ap"] == read_info(workspace / "thin" / "weights.safetensors").facts["ap"]
    code, result, errors = run(
        "train", "--data", shapes, "--finetune", "--batch-size", 8, "--out", workspace
    )
    assert code == 0, errors
    assert result["inherited"] and result["epochs"] == 1


def test_a_finished_training_is_kept(workspace: Path, shapes: Path) -> None:
    path = workspace / "elastic" / "weights.safetensors"
    before = path.stat().st_mtime_ns
    again = ["supernet", "--data", shapes, *SIZE, "--elastic"]
    code, _, errors = run(*again, "--elastic-epochs", 1, "--out", workspace)
    assert code == 0, errors
    assert path.stat().st_mtime_ns == before


def test_another_supernet_makes_the_elastic_one_void(
    workspace: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = ["supernet", "--data", shapes, *SIZE, "--seed", 3]
    code, _, errors = run(*again, "--restart", "--out", workspace)
    assert code == 0, errors
    assert load_elastic(Workspace(workspace)) is None
    assert "made of another supernet" in capsys.readouterr().err
    code, _, errors = run("thin", "--target-fps", 1, *HERE, "--out", workspace)
    assert code == 0, errors
    assert not (workspace / "thin" / "weights.safetensors").exists()


def test_refusals(workspace: Path, shapes: Path) -> None:
    again = ["supernet", "--data", shapes, *SIZE, "--elastic", "--out", workspace]
    assert "add --elastic" in fails(2, "supernet", "--data", shapes, "--elastic-epochs", 3)
    assert "at least 1 network" in fails(2, *again, "--drawn", 0)
    (workspace / "thin" / "weights.safetensors").unlink()
    polish = ["train", "--data", shapes, "--finetune", "--out", workspace]
    assert "--finetune polishes" in fails(2, *polish)
    path = workspace / "elastic" / "weights.safetensors"
    info = read_info(path)
    facts = {key: value for key, value in info.facts.items() if key != "elastic"}
    save_checkpoint(path, load_file(path), replace(info, facts=facts))
    thin = ["thin", "--target-fps", 1, *HERE, "--out", workspace]
    assert "was not trained elastic" in fails(2, *thin)
    for broken in ("[", "[" * 100_000):
        (workspace / "elastic" / "plan.json").write_text(broken)
        assert "cannot be read" in fails(2, *again)


def test_a_fleet_is_trained_once_and_grows_without_training(
    workspace: Path, shapes: Path, tmp_path: Path
) -> None:
    """What is trained is kept: a member costs a thinning and an export."""
    fleet = tmp_path / "fleet.toml"
    table = '[{}]\ndevice = "cpu"\nthreads = 1\ntarget_fps = {}\n'
    fleet.write_text(table.format("slow", 1))
    line = ["fleet", fleet, "--data", shapes, "--supernet-epochs", 1, "--epochs", 1]
    line += ["--input-size", "96x128", "--space", "micro", "--out", workspace]
    before = (workspace / "elastic" / "weights.safetensors").stat().st_mtime_ns
    code, _, errors = run(*line)
    assert code in (0, 3), errors  # a shared machine may be slower at the end than before
    bundle = workspace / "fleet" / "slow" / "bundle-onnx"
    card = json.loads((bundle / "card.json").read_text())
    assert card["training"]["inherited"] == "elastic supernet"
    made = bundle.stat().st_mtime_ns
    fleet.write_text(table.format("slow", 1) + table.format("other", 2))
    code, result, errors = run(*line)
    assert code in (0, 3), errors
    assert set(result["fleet"]) == {"slow", "other"}
    assert (workspace / "elastic" / "weights.safetensors").stat().st_mtime_ns == before
    if code == 0:
        assert bundle.stat().st_mtime_ns == made
    fleet.write_text(table.format("slow", 1))
    code, result, errors = run(*line, "--finetune")
    assert code in (0, 3), errors
    card = json.loads((bundle / "card.json").read_text())
    assert "inherited" not in card["training"] and card["training"]["epochs"] == 1
    assert "Accuracy and frame rate" in (workspace / "report.html").read_text()


def test_a_ladder_is_a_folder_of_bundles(workspace: Path, shapes: Path) -> None:
    line = ["export", "--ladder", "1", "--threads", 1, "--data", shapes, "--out", workspace]
    code, result, errors = run(*line)
    assert code in (0, 3), errors
    assert read_ladder(Path(result["bundle"])) == [{"bundle": "1-fps", "target_fps": 1.0}]
    assert "frame rates with commas" in fails(2, *line[:2], "60;30", *line[3:])
    shutil.rmtree(workspace / "elastic")
    assert "heat supernet --elastic" in fails(2, *line)


def test_a_target_outside_the_chain_names_its_ends(workspace: Path, shapes: Path) -> None:
    fleet = workspace.parent / "fleet.toml"
    fleet.write_text('[far]\ndevice = "cpu"\nthreads = 1\ntarget_fps = 9000\n')
    shutil.rmtree(workspace / "elastic")
    again = ["supernet", "--data", shapes, *SIZE, "--elastic"]
    line = fails(2, *again, "--targets", fleet, "--out", workspace)
    assert "9000 FPS is outside of the chain" in line and "predicted to run at" in line


def test_a_resumed_training_ends_with_the_same_weights(
    unit: Any, shapes: Path, tmp_path: Path
) -> None:
    data = load_split(shapes, "train")
    config = recipe("small", epochs=2, batch_size=8)

    class StopError(Exception):
        pass

    def stop(epoch: int, losses: object) -> None:
        raise StopError

    def train(folder: Path, **more: Any) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        supernet = make(unit.with_(num_classes=data.num_classes, input_size=(64, 64)))
        largest = members_of(supernet)[0]
        elastic = order_channels(supernet, largest.architecture, largest.positions)
        task = ElasticTask(elastic, data, members_of(elastic))
        run_task(task, config, folder, Running(resume=True, workers=0), **more)
        return load_file(folder / "weights.safetensors")

    whole = train(tmp_path / "whole")
    with pytest.raises(StopError):
        train(tmp_path / "parts", on_epoch=stop)
    for name, value in train(tmp_path / "parts").items():
        assert torch.equal(value, whole[name]), name
