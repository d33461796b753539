"""`heat export` and `heat report`: what is compared with what, and which network is taken."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from deploy.form import Form
from heat.commands.asked_network import deployed_as
from heat.spaces import search_space
from heat.stages.build_done import is_thinned
from heat.stages.export import _facts
from heat.stages.network import load_network
from heat.stages.promise import Promise, is_network, is_run_so, promise_of
from heat.stages.report import _kept, write_report
from heat.thinning.candidates import Candidate, open_search
from heat.thinning.limits import Limits
from heat.thinning.moves import ThinningRules
from heat.thinning.proxies import ApDropBy
from heat.thinning.source import Source
from heat.thinning.thinned import need_thinned
from heat.workspace import Workspace
from latency_tables.devices import Target, declared, resolve
from latency_tables.probe.machine import Gpu
from supernet.errors import UserError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.supernet import SearchSpace, Supernet
from supernet.network import find_architecture
from tests.command_line import fails, run
from tests.workspaces import SMALL_SPACE, thin_by_estimate


def test_a_gpus_prediction_is_held_against_the_gpu(
    thinned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tables of CUDA devices are named by the card, not by the CPU beside it."""
    workspace = Workspace(thinned)
    card = Gpu("NVIDIA H100 80GB HBM3", "570.1", "1980 MHz", "1980 MHz", 81559)
    target = replace(resolve("cpu", threads=1), gpu=card)
    form = Form(threads=1)
    record = replace(
        need_thinned(workspace), runtime="onnxruntime", precision="f32", threads=1, model=card.model
    )
    architecture = Architecture.load(workspace.architecture)
    assert is_run_so(record, target, form) and is_network(workspace, record, architecture)
    promised = promise_of(workspace, record, architecture, target, form)
    assert promised.thinned is record
    no_gpu = replace(target, gpu=None)
    record = replace(record, here=True)
    assert promise_of(workspace, record, architecture, no_gpu, form).thinned is None
    assert "was thinned on NVIDIA H100 80GB HBM3, this machine is" in capsys.readouterr().err
    assert _facts(target, form, record, None, Promise(record))["device_model"] == card.model
    other = architecture.with_(head="one-to-one")
    assert not is_network(workspace, record, other)
    classes = architecture.with_(num_classes=architecture.num_classes + 1)
    assert is_network(workspace, record, classes)
    before = replace(record, widths=tuple(2 * width for width in record.widths))
    assert not is_network(workspace, before, architecture)  # it was not recorded


def test_a_bundle_for_another_machine_runs_there_as_it_was_thinned_for(thinned: Path) -> None:
    workspace = Workspace(thinned)
    there = need_thinned(workspace)
    assert there.threads == 6
    # A board that was measured over ssh has the name of any CPU, and more cores than this machine.
    workspace.record("thin", {**there.to_dict(), "requested": "cpu", "threads": 600})
    code, exported, errors = run("export", "--out", thinned)
    assert code == 0, errors
    card = json.loads((workspace.bundle("onnx") / "card.json").read_text())
    assert card["threads"] == 600 and card["measured_threads"] == exported["threads"] < 600
    assert card["target_fps"] is None and card["thinned_for"]["target_fps"] == 30


def test_a_searched_global_block_is_used_on_a_gpu(tmp_path: Path) -> None:
    for device in ("v100", "cpu-i7"):
        asked = [*SMALL_SPACE, "--out", tmp_path]
        code, _, errors = run("profile", "--device", device, "--estimate", *asked)
        assert code == 0, errors
    space = search_space("micro", input_size=(96, 128), num_classes=80)
    space = replace(space, global_choice=True)
    torch.manual_seed(0)
    supernet = Supernet(space).eval()
    with torch.no_grad():
        supernet.global_r.copy_(torch.tensor([0.0, 1.0]))
    source = Source(supernet, supernet.logits(), "digest")
    target = declared("v100")
    mass: ApDropBy = "mass"
    candidate = Candidate(space, (target,), (Limits(target_fps=1.0),))
    workspace = Workspace(tmp_path)
    with open_search(workspace, candidate, source, None, mass, ThinningRules(), True) as search:
        state = search.chain.states[0]
        assert search.candidate.space.template.global_block == "oa"
        assert search.architecture(state).global_block == "oa"
    on_cpu = replace(candidate, targets=(declared("cpu-i7"),))
    with open_search(workspace, on_cpu, source, None, mass, ThinningRules(), True) as other:
        assert other.candidate.space.template.global_block == "cw"
        assert other.based_on != search.based_on, "another device's table is another study"
    sizes = [candidate, replace(candidate, limits=(Limits(target_fps=2.0),))]
    for each in sizes:  # as of several precisions: each keeps what was measured for it
        with open_search(workspace, each, source, None, mass, ThinningRules(), True) as one:
            one.measured.value("a network", lambda: 1.0)
    for each in sizes:
        with open_search(workspace, each, source, None, mass, ThinningRules(), True) as one:
            assert len(one.measured) == 1


def test_an_untrained_network_never_replaces_a_trained_one(trained: Path, tmp_path: Path) -> None:
    thin_by_estimate(trained)
    out = ["--out", trained]
    line = fails(2, "export", *out)
    assert "--network trained" in line and "--network thinned" in line and "--restart" in line
    assert not (trained / "bundle-onnx").exists()
    assert "not of the thinned network" in fails(2, "eval", *out)
    code, exported, errors = run("export", "--network", "trained", "--threads", 1, *out)
    assert code == 0 and exported["trained"] and exported["predicted_fps"] is None, errors
    nothing = ["--network", "trained", "--out", tmp_path / "empty"]
    assert "heat train makes it" in fails(2, "export", *nothing)


def test_the_parts_of_the_report_add_up_to_the_prediction(thinned: Path) -> None:
    workspace = Workspace(thinned)
    page = write_report(workspace, None).read_text()
    predicted = workspace.need("thin", "heat thin")["predicted_ms"]
    found = re.search(r"each part, ([\d.]+) in all", page)
    assert found is not None and float(found[1]) == pytest.approx(predicted, abs=0.01)
    parts = [float(ms) for ms in re.findall(r'\dx\d+</td><td class="n">([\d.]+)</td>', page)]
    assert sum(parts) == pytest.approx(predicted, abs=0.05)


def test_an_engine_that_was_not_run_is_reported_as_not_run(thinned: Path) -> None:
    workspace = Workspace(thinned)
    card = {
        "format": 1, "model_format": "tensorrt", "trained": False, "names": ["a"], "raw": False,
        "model": "model.engine", "runtime": "tensorrt", "precision": "f16", "threads": 1,
        "input": {"height": 64, "width": 96}, "files": {},
        "measured_fps": None, "measured_ms": None, "p50_ms": None, "p95_ms": None,
        "target_fps": None, "device_model": None, "macs": 1, "params": 1, "accuracy": None,
        "parity": {"images": 1, "matched": 1, "unmatched": 0, "max_box_px": 0, "max_score": 0},
    }  # fmt: skip
    folder = workspace.bundle("tensorrt")
    folder.mkdir()
    (folder / "card.json").write_text(json.dumps(card))
    page = write_report(workspace, None).read_text()
    assert "<b>not run</b>" in page and "None" not in page


def test_a_preset_is_exported_without_thinning(trained: Path, shapes: Path) -> None:
    """With `--images` too, where the data of the training was not read, and nothing said so."""
    out = ["--out", trained]
    asked = ["export", "--images", shapes / "val", "--threads", 1, *out]
    assert "--max-ap-drop -5" in fails(3, *asked, "--max-ap-drop", -5)
    code, exported, errors = run(*asked)
    assert code == 0 and exported["accuracy_check"] is not None, errors
    assert exported["trained"] is True and exported["predicted_fps"] is None
    assert "no finished thin" in fails(2, "train", "--data", shapes, "--restart", *out)


def test_box_voting_needs_no_training(trained: Path, shapes: Path) -> None:
    out = ["--out", trained]
    code, exported, errors = run("export", "--head", "voted", "--threads", 1, *out)
    assert code == 0, errors
    bundle = Path(str(exported["bundle"]))
    network = load_network(Workspace(trained)).network
    assert network.architecture.with_(head="voted") != network.architecture
    own = network.to_onnx().graph.node
    assert len(onnx.load(str(bundle / "model.onnx")).graph.node) > len(own)
    code, _, errors = run("eval", "--data", shapes, "--head", "voted", *out)
    assert code == 0, errors
    assert "a bundle's head is fixed" in fails(
        2, "eval", "--data", shapes, "--bundle", bundle, "--head", "nms", *out
    )


def test_a_head_that_is_trained_in_another_way_is_not_exported(unit: Architecture) -> None:
    assert deployed_as(unit, "voted") == unit.with_(head="voted")
    assert deployed_as(unit) == unit
    with pytest.raises(UserError, match="was trained one-to-one: heat train --head voted"):
        deployed_as(unit.with_(head="one-to-one"), "voted")
    with pytest.raises(UserError, match="--head nms: of HeatDETR, not of detr"):
        deployed_as(find_architecture("detr-r50"), "nms")


def test_a_broken_export_is_no_kept_promise(thinned: Path) -> None:
    card: Any = {"model_format": "onnx", "measured_fps": 99.0, "target_fps": 30.0}
    record = replace(need_thinned(Workspace(thinned)), measured_fps=40.0)
    assert _kept({}, record, [card])
    assert _kept({"export-onnx": {"broken": "ratio 0.83"}}, record, [card]) is False  # type: ignore[typeddict-unknown-key]


def test_a_precision_that_a_runtime_has_not(thinned: Path) -> None:
    """It named a file that was removed, and advised to export again."""
    asked = ["--network", "thinned", "--precision", "bf16", "--threads", 1]
    line = fails(2, "export", *asked, "--out", thinned)
    assert "onnxruntime cannot run this network in bf16 here (" in line
    assert "another --precision or --format; nothing was written" in line and "heat-tmp" not in line


def test_the_target_is_recorded_as_it_was_asked_for(thinned: Path) -> None:
    """It was rounded to four decimals: `heat build` never found its own result again."""
    workspace = Workspace(thinned)
    target_fps = 30.123456789
    far = ["--device", "cpu-i7", "--trust-table", "--out", workspace.root]
    code, found, errors = run("thin", "--target-fps", target_fps, *far)
    assert code == 0 and found["target_fps"] == target_fps, errors
    assert need_thinned(workspace).limits == Limits(target_fps=target_fps)


def test_a_build_goes_on_from_a_thinning_of_its_own_only(thinned: Path) -> None:
    """It went on from the README's `heat thin` before any training, and then was refused."""
    workspace = Workspace(thinned)
    record = need_thinned(workspace)
    target = declared(
        "cpu-i7", runtime=record.runtime, threads=record.threads, precision=record.precision
    )
    other_space = replace(record.space, template=record.space.template.with_(num_classes=3))

    def own(
        space: SearchSpace = record.space, target: Target = target, fps: float = record.target_fps
    ) -> bool:
        return is_thinned(workspace, space, target, Limits(target_fps=fps), "onnx")

    assert own() and not own(fps=30.5) and not own(space=other_space)
    assert not own(target=replace(target, threads=record.threads + 1))
    broken, head = "20 FPS measured, target 30", record.space.template.head
    for exported, kept in (
        ({"broken": broken}, False),
        ({"broken": broken, "head": head}, False),
        ({"broken": broken, "head": "voted" if head == "nms" else "nms"}, True),  # --head
        ({"broken": None}, True),
    ):
        workspace.record("export-onnx", exported)
        assert own() is kept
    path = workspace.root / "run.json"
    kept = path.read_text()
    text = json.loads(kept)
    text["stages"]["thin"]["finished"] = "2026-01-01T00:00:00+00:00"
    for later in ("supernet", "profile"):
        path.write_text(json.dumps(text))
        workspace.record(later, {"space": record.space.to_dict()})
        assert not own()


def test_the_network_that_is_scored_is_the_one_asked_for(
    trained: Path, shapes: Path, tmp_path: Path
) -> None:
    for which, line in (("thinned", "run heat thin"), ("trained", "heat train makes it")):
        asked = ("--network", which, "--data", shapes, "--out", tmp_path / "empty")
        assert line in fails(2, "eval", *asked)
    out = ["--out", trained]
    for command in (("eval", "--data", shapes), ("export",)):  # there is a trained one only
        assert "run heat thin" in fails(2, *command, "--network", "thinned", *out)
    thin_by_estimate(trained, "--data", shapes)
    line = fails(2, "eval", "--data", shapes, *out)
    assert "--network trained" in line and "--network thinned" in line
    code, scored, errors = run("eval", "--network", "trained", "--data", shapes, *out)
    assert code == 0 and scored["scored"].endswith("train"), errors
    assert "UNTRAINED" not in errors
    code, scored, errors = run("eval", "--network", "thinned", "--data", shapes, *out)
    assert code == 0 and scored["scored"].endswith("architecture.json"), errors
    assert "UNTRAINED" in errors
    other = ["--network", "trained", "--bundle", tmp_path / "b", "--data", shapes, *out]
    assert "a bundle holds one network" in fails(2, "eval", *other)
    (trained / "thin" / "architecture.json").unlink()
    assert "architecture.json" in fails(2, "eval", "--network", "thinned", "--data", shapes, *out)


def test_an_export_writes_files_for_a_server(thinned: Path) -> None:
    asked = ["--network", "thinned", "--serving", "--threads", 1, "--out", thinned]
    code, exported, errors = run("export", *asked)
    assert code == 0, errors
    layout = Path(exported["serving"])
    assert layout == thinned / "serving" / "triton"
    name = thinned.name
    assert f'name: "{name}"' in (layout / name / "config.pbtxt").read_text()
    assert (layout / name / "1" / "model.onnx").samefile(thinned / "bundle-onnx" / "model.onnx")
    code, exported, errors = run("export", *asked[:2], *asked[3:])
    assert code == 0 and exported["serving"] is None, errors
    assert "not tensorrt" in fails(2, "export", "--format", "tensorrt", "--gpu", "8.9", *asked)
