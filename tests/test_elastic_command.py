"""One training for all frame rates: elastic supernets, what thinning takes of them, fleets."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from deploy.edge.card import Card
from deploy.edge.ladder import read_ladder
from heat.commands.candidates import find_candidates
from heat.stages import elastic as stage
from heat.stages import evaluate, inherited
from heat.stages.fleet_build import was_thinned_for
from heat.stages.network import Which, load_network
from heat.stages.score_calibration import recorded_calibration
from heat.thinning.candidates import Candidate, Wanted
from heat.thinning.limits import Cost, Limits
from heat.thinning.moves import ThinningRules, removed_mass
from heat.thinning.nested import by_macs, by_size
from heat.thinning.search import Chain
from heat.thinning.source import elastic_members, load_elastic
from heat.workspace import Workspace
from supernet.checkpoint import read_info, save_checkpoint
from supernet.data.coco import load_split
from supernet.data.score_calibration import Calibrated, ScoreCalibration
from supernet.errors import CheckpointError, UserError
from supernet.heatdetr.elastic import Member
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


def test_it_is_evaluated_and_finetuned_without_a_training(workspace: Path, shapes: Path) -> None:
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
    assert path.stat().st_mtime_ns == before and "warning: the finished" not in errors
    code, _, errors = run(*again, "--elastic-epochs", 2, "--drawn", 2, "--out", workspace)
    assert code == 0 and path.stat().st_mtime_ns == before
    assert "is kept: epochs 1, not 2, drawn 1, not 2" in errors


def test_a_restart_is_of_the_elastic_training(workspace: Path, shapes: Path) -> None:
    """That is what messages advise it for; the supernet before it stays, if it is finished."""
    plain = workspace / "supernet" / "weights.safetensors"
    path = workspace / "elastic" / "weights.safetensors"
    before = plain.stat().st_mtime_ns, path.stat().st_mtime_ns
    again = ["supernet", "--data", shapes, *SIZE, "--elastic", "--elastic-epochs", 1, "--restart"]
    code, _, errors = run(*again, "--out", workspace)
    assert code == 0, errors
    assert plain.stat().st_mtime_ns == before[0] and path.stat().st_mtime_ns > before[1]
    code, _, errors = run(*again, "--seed", 5, "--out", workspace)
    assert code == 0 and plain.stat().st_mtime_ns > before[0], errors
    plain.write_bytes(plain.read_bytes()[:100])
    code, _, errors = run(*again, "--seed", 5, "--out", workspace)
    assert code == 0 and read_info(plain).finished, errors


def test_inherited_weights_have_a_calibration_of_their_own(
    workspace: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, data = Workspace(workspace), load_split(shapes, "val")
    fitted = Calibrated(ScoreCalibration((1.5,) * 4, (0.5,) * 4), "shapes", "val", 8, 99, 0.2, 0.1)
    monkeypatch.setattr(evaluate, "fit", lambda rows, data: fitted)
    result = evaluate.evaluate_checkpoint(root, data, calibrate=True)
    loaded = load_network(root)
    assert loaded.weights == workspace / "thin" / "weights.safetensors"
    assert result["scored"] == str(workspace / "thin")
    known = recorded_calibration(root, loaded.network, loaded.weights)
    assert known is not None and known.calibration == fitted.calibration


def test_a_score_is_not_written_over_another_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written: list[Any] = []
    monkeypatch.setattr(evaluate, "write_card", lambda folder, card: written.append(card))
    scored = {"files": {"model.onnx": "1"}, "accuracy": None}
    for now in ("1", "2"):
        card = {"files": {"model.onnx": now}, "name": "new"}
        monkeypatch.setattr(evaluate, "read_card", lambda folder, card=card: card)
        evaluate.write_accuracy(tmp_path, cast(Card, scored), {"ap": 0.5})
    assert [each["accuracy"] for each in written] == [{"ap": 0.5}] and written[0]["name"] == "new"
    assert "was exported again meanwhile" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "again"),
    [
        ({}, False),
        ({"runtime": "openvino"}, True),
        ({"precision": "bf16"}, True),
        ({"threads": 2}, True),
        ({"input_size": "64..128"}, True),
        ({"limits": Limits(target_fps=2)}, True),
        ({"limits": Limits(target_fps=1, max_latency_ms=1e3, percentile="p95")}, True),
        ({"limits": Limits(target_fps=1, max_size_mb=9)}, True),
    ],
)
def test_a_member_is_thinned_again_for_another_wish(
    workspace: Path, shapes: Path, asked: dict[str, Any], again: bool
) -> None:
    root = Workspace(workspace)
    here = {"runtime": "onnxruntime", "threads": 1, "limits": Limits(target_fps=1)} | asked
    candidates, data = find_candidates(root, here.pop("limits"), devices=["cpu"], **here)
    if "input_size" in asked:
        candidates = [c for c in candidates if c.space.template.input_size != (96, 128)]
    assert was_thinned_for(root, Wanted(candidates, data, trust=False)) is not again


def one_frame_a_second(workspace: Path) -> Wanted:
    how = {"devices": ["cpu"], "runtime": "onnxruntime", "threads": 1}
    candidates, data = find_candidates(Workspace(workspace), Limits(target_fps=1), **how)
    return Wanted(candidates, data, trust=False)


@pytest.mark.parametrize(
    "other",
    [
        {"device": "arm-cortex-a72"},  # the fleet was moved: --device cpu is another machine
        {"runtime_version": "0.9"},
        {"spinning": "never"},
        {"candidates": ["96x128 cpu onnxruntime f32", "64x96 cpu onnxruntime f32"]},
    ],
)
def test_of_other_conditions_it_is_thinned_again(workspace: Path, other: dict[str, Any]) -> None:
    root, wanted = Workspace(workspace), one_frame_a_second(workspace)
    assert was_thinned_for(root, wanted)
    root.record("thin", root.stage("thin") | other)
    assert not was_thinned_for(root, wanted)


def test_a_promise_that_an_export_broke_is_thinned_again(workspace: Path) -> None:
    root, wanted = Workspace(workspace), one_frame_a_second(workspace)
    root.record("export-onnx", {"broken": None})
    assert was_thinned_for(root, wanted)
    root.record("export-onnx", {"broken": ["40 FPS, target 60"]})
    assert not was_thinned_for(root, wanted)


def test_a_training_of_an_earlier_thinning_is_not_exported(
    workspace: Path, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune = ["train", "--data", shapes, "--finetune", "--batch-size", 8, "--out", workspace]
    code, _, errors = run(*finetune)
    assert code == 0, errors
    root = Workspace(workspace)

    def taken(which: Which | None = None) -> object:
        facts = load_network(root, which=which).training
        assert facts is not None
        return facts.get("inherited")

    assert taken() is None, "the training is newer"
    records = json.loads((workspace / "run.json").read_text())
    records["stages"]["train"]["finished"] = "2026-01-01T00:00:00+00:00"
    (workspace / "run.json").write_text(json.dumps(records))
    assert taken() == taken("thinned") == "elastic supernet" and taken("trained") is None
    assert "no finished training of this thinning" in capsys.readouterr().err


def test_a_network_smaller_than_any_that_was_trained_is_reported(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, path = Workspace(workspace), workspace / "elastic" / "weights.safetensors"
    supernet = load_elastic(root)
    assert supernet is not None
    members = elastic_members(path, supernet.space.template)
    small = members[-1].architecture.with_(input_size=(192, 256))
    inherited.warn_if_smaller(root, supernet, small)
    assert not capsys.readouterr().err
    monkeypatch.setattr(inherited, "elastic_members", lambda path, template: members[:1])
    inherited.warn_if_smaller(root, supernet, small)
    assert "the smallest network that was trained has" in capsys.readouterr().err


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
    for option in (["--elastic-epochs", 3], ["--drawn", 2], ["--teach-from", 0.5]):
        assert "add --elastic" in fails(2, "supernet", "--data", shapes, *option)
    fresh = ["supernet", "--data", shapes, *SIZE, "--elastic", "--out", workspace / "new"]
    assert "cannot read" in fails(2, *fresh, "--targets", workspace / "none.toml")
    assert "--epochs 0" in fails(2, *fresh, "--elastic-epochs", 0)
    assert not (workspace / "new" / "supernet").exists(), "refused before any work"
    assert "at least 1 network" in fails(2, *again, "--drawn", 0)
    (workspace / "thin" / "weights.safetensors").unlink()
    finetune = ["train", "--data", shapes, "--finetune", "--out", workspace]
    assert "--finetune trains" in fails(2, *finetune)
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
    first, _, errors = run(*line)
    assert first in (0, 3), errors  # a shared machine may be slower at the end than before
    bundle = workspace / "fleet" / "slow" / "bundle-onnx"
    card = json.loads((bundle / "card.json").read_text())
    assert card["training"]["inherited"] == "elastic supernet"
    assert "vote_spread" not in card["decode"], "the supernet was trained without"
    made = bundle.stat().st_mtime_ns
    fleet.write_text(table.format("slow", 1) + table.format("other", 2))
    code, result, errors = run(*line)
    assert code in (0, 3), errors
    assert set(result["fleet"]) == {"slow", "other"}
    assert (workspace / "elastic" / "weights.safetensors").stat().st_mtime_ns == before
    if first == 0 and code == 0:  # a broken promise is thinned and exported again
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
    assert "outside of the chain" in line and "predicted to run at" in line
    assert "target 9000" in line


def test_ways_of_several_sizes_are_trained_at_one_and_one_that_fails_is_passed_over(
    unit: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    supernet = make(unit)
    space, logits = supernet.space, supernet.logits()
    rules = ThinningRules()
    limits = Limits(target_fps=1.0, max_size_mb=9.0)

    @contextmanager
    def search(*given: Any) -> Iterator[Any]:
        candidate = given[1]
        chain = Chain(
            candidate.space, logits, rules, by_macs(candidate.space, logits),
            lambda before, after: removed_mass(before, after, logits),
        )  # fmt: skip
        heavy = candidate.space.template.input_size == (64, 64)
        cost = Cost(fps=50.0, size_mb=10.0 if heavy else 8.0, memory_mb=1.0)
        goal = SimpleNamespace(limits=limits, predict=lambda state: cost)
        yield SimpleNamespace(chain=chain, goals=[goal], candidate=candidate)

    monkeypatch.setattr(stage, "open_search", search)
    monkeypatch.setattr(stage, "load_source", lambda *given, **more: None)
    sizes = [(64, 64), space.template.input_size, (128, 192)]
    target = SimpleNamespace(name="cpu")
    candidates = [
        Candidate(
            replace(space, template=space.template.with_(input_size=size)),
            (target,), (limits,),
        )
        for size in sizes
    ]  # type: ignore[arg-type]  # fmt: skip
    wanted = Wanted(candidates, None, trust=False)
    own = space.template.input_size
    ways = list(stage._ways(Workspace(tmp_path), "gate", wanted, own))
    assert len(ways) == 2 and ways[0] == ways[1], "of two sizes the same networks"
    members = by_size(member for way, _ in ways for member in way)
    assert [m.architecture.input_size for m in members] == [own] * len(members)
    again = [Member.from_dict(m.to_dict(), space.template) for m in members]
    assert again == members
    only = Wanted(candidates[:1], None, trust=False)
    with pytest.raises(UserError, match=r"\[gate\]: outside .* has size 10.0 MiB, at most 9"):
        list(stage._ways(Workspace(tmp_path), "gate", only, own))


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
    with pytest.raises(CheckpointError, match=r"\(other networks trained together\)"):
        train(tmp_path / "parts", start={"networks": "others"})
    for name, value in train(tmp_path / "parts").items():
        assert torch.equal(value, whole[name]), name
