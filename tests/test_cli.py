import inspect
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import heat.stages.build as stage
from heat.cli import app
from heat.records import BuildPlan, OnDevice, SupernetPlan, Trained, TrainPlan
from heat.views.outputs import is_pack
from heat.workspace import Workspace
from latency_tables.device_file import load_devices
from latency_tables.probe.machine import detect_cpu
from latency_tables.table_file import read_table
from supernet.data.shapes import make_shapes
from supernet.errors import HeatError
from tests.command_line import SMALL, fails, run

OPTIONS = {
    "adopt": "checkpoint architecture input_size data restart out",
    "bench": "models runtime precision threads rounds throughput input_size picture",
    "completion": "shell",
    "build": "data target_fps device runtime threads minutes format space input_size output_stride "
    "head backbone distil calibrate seed restart out",
    "describe": "what input_size",
    "detect": "bundle sources score save show frames labels all_boxes tiles track "
    "hold_fps json threads",
    "devices": "",
    "doctor": "device out",
    "eval": "data split bundle network attention rounds window clusters calibrate out",
    "export": "format precision raw dynamic_batch opset max_ap_drop calibrate serving device gpu "
    "quantizer threads images network attention rounds window clusters ladder data out",
    "fleet": "targets data space input_size output_stride head supernet_epochs epochs batch_size "
    "precision backbone finetune calibrate workers seed restart out",
    "init": "",
    "label": "images teacher score data out",
    "pretrain": "data teacher feature teacher_size teacher_norm mean std views cache_gb "
    "architecture input_size output_stride epochs batch_size accumulate learning_rate drop_path "
    "precision workers compile tensorboard seed resume restart out",
    "profile": "device runtime precision threads spinning pinning input_size space "
    "output_stride head global_block data host host_python pack unpack estimate few_shot compare "
    "show out",
    "report": "data out",
    "supernet": "data space input_size output_stride head epochs batch_size accumulate "
    "learning_rate ema_decay train_precision logit_learning_rate noise straight_through "
    "global_block backbone elastic elastic_epochs drawn teach_from targets workers seed resume "
    "restart show out",
    "thin": "target_fps max_latency_ms at max_memory_mb max_size_mb device runtime precision "
    "threads space input_size data trust_table ap_drop search trials study frontier targets "
    "explain diff out",
    "train": "data architecture input_size output_stride head backbone weights teacher "
    "unlabelled attention rounds window recipe epochs batch_size accumulate learning_rate schedule "
    "drop_path assign balanced precision inherit finetune eval_every patience workers compile "
    "tensorboard seed resume restart out",
}
"""New flags are deliberate: this list changes with them."""


def test_options_are_deliberate() -> None:
    for name, options in OPTIONS.items():
        function = app[name].default_command
        assert function is not None
        assert list(inspect.signature(function).parameters) == options.split()


def test_help_never_loads_torch() -> None:
    program = (
        "import sys\nfrom heat.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'onnx', 'openvino', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in OPTIONS:
        assert name in done.stdout


def test_describe_prints_the_specs_integers() -> None:
    code, result, errors = run("describe", "medium", "--input-size", "832x1344")
    assert code == 0
    assert result["macs_conv_linear"] == 79_396_402_176
    assert result["macs_attention"] == 999_014_016
    assert "sam3_fuse" in errors


@dataclass(frozen=True)
class Profiled:
    """What `heat profile` left and said."""

    out: Path
    found: dict[str, Any]
    errors: str

    def copy(self, to: Path) -> Path:
        """Return a workspace of one's own."""
        return shutil.copytree(self.out, to)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Profiled:
    """This machine's table of a small space: it takes a minute, so that one serves all tests."""
    out = tmp_path_factory.mktemp("profiled") / "run"
    code, found, errors = run("profile", "--device", "cpu-i7", *SMALL, "--out", out)
    assert code == 0, errors
    return Profiled(out, found, errors)


def test_three_commands(
    profiled: Profiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """profile, thin, export, detect: untrained, and marked so, on a small space."""
    monkeypatch.chdir(tmp_path)
    profiled.copy(tmp_path / "heat-run")
    found = profiled.found
    assert found["entries"] > 100 and found["held_out_error"] >= 0
    if "i7" not in found["detected"]["model"]:
        assert found["device"] != "cpu-i7" and "named as" in profiled.errors
    code, again, _ = run("profile", "--device", "cpu-i7", *SMALL)
    assert again["entries"] == found["entries"], "what is measured is kept"

    code, full, errors = run("thin", "--target-fps", 1)
    assert code == 0 and full["met"] and full["steps"] == 0, errors
    code, thinned, errors = run("thin", "--target-fps", 1.4 * full["measured_fps"])
    assert code == 0 or (code == 3 and ("thin again" in errors or "out of reach" in errors)), errors
    if code == 0:
        assert thinned["measured_fps"] >= thinned["target_fps"] and thinned["steps"] > 0
        assert "prior" in thinned["ranked_by"]
        ledger = (tmp_path / "heat-run" / "thin" / "thinning.csv").read_text().splitlines()
        assert len(ledger) > thinned["steps"]

    code, exported, errors = run("export", "--format", "onnx")
    assert "UNTRAINED" in errors and code in (0, 3)
    bundle = Path("heat-run/bundle-onnx")
    assert json.loads((bundle / "card.json").read_text())["trained"] is False
    if code == 0:
        assert exported["trained"] is False and exported["bundle"] == str(bundle)

    run("data", "shapes", "d", "--train", 2, "--val", 2)
    code, found, errors = run("detect", bundle, "d/val", "--score", 0.0)
    assert code == 0 and found["images"] == 2 and "UNTRAINED" in errors
    assert Path("detections/detections.json").exists()
    assert "no machine is so fast" in fails(2, "thin", "--target-fps", 1e9)
    code, floor, errors = run("thin", "--target-fps", 1.5e4)
    assert errors.count("out of reach") == 1
    assert code == 3 and floor["met"] is False and floor["measured_fps"] > full["measured_fps"]
    assert run("report")[0] == 0


def test_training_to_report(shapes: Path, tmp_path: Path) -> None:
    """supernet, thin, train --inherit, eval, export in both formats, eval of bundles, report."""
    out = ["--out", tmp_path / "run"]
    small = ["--epochs", 2, "--batch-size", 8]
    code, _, errors = run(
        "supernet", "--data", shapes, "--space", "micro", "--input-size", "96x128", *small, *out
    )
    assert code == 0, errors
    code, thinned, errors = run("thin", "--target-fps", 1, "--threads", 1, *out)
    assert code == 0 and thinned["ranked_by"] == "supernet", errors
    assert "loss" in thinned["ap_drop_by"]
    code, trained, errors = run("train", "--data", shapes, "--inherit", *small, *out)
    assert code == 0 and trained["epochs"] == 2, errors
    code, scored, _ = run("eval", *out)
    assert code == 0 and scored["images"] == 8
    for format in ("onnx", "openvino"):
        code, exported, errors = run("export", "--format", format, *out)
        assert exported.get("trained") is True or code == 3, errors
        code, again, _ = run("eval", "--bundle", tmp_path / "run" / f"bundle-{format}", *out)
        assert code == 0 and again["ap"] == pytest.approx(scored["ap"], abs=0.005)
    code, result, errors = run("report", *out)
    assert code == 0, errors
    page = Path(result["report"]).read_text()
    for part in (
        "Where the time goes", "The latency table", "Detections", "<svg", "Promise",
        "What it gets wrong", "worst images",
    ):  # fmt: skip
        assert part in page
    assert "http://www.w3.org" in page and 'src="http' not in page


def test_build_goes_on_where_it_was(tmp_path: Path) -> None:
    data = tmp_path / "shapes"
    make_shapes(data, train=8, val=4, seed=0)
    arguments = [
        "build", "--data", data, "--target-fps", 2, "--minutes", 0.05, "--threads", 1,
        "--space", "micro", "--input-size", "96x128", "--distil", "--out", tmp_path / "run",
    ]  # fmt: skip
    code, _, errors = run(*arguments)
    if code == 3:  # a noisy machine may break the speed promise; the stages are kept all the same
        code, _, errors = run(*arguments)
    assert code == 0 or (code == 3 and "again" in errors), errors
    stages = Workspace(tmp_path / "run").stages()
    for name in ("plan", "profile", "supernet", "thin", "train", "export-onnx"):
        assert name in stages
    for kind, name in (
        (BuildPlan, "plan"),
        (OnDevice, "profile"),
        (OnDevice, "thin"),
        (Trained, "supernet"),
        (Trained, "train"),
        (SupernetPlan, "supernet-plan"),
        (TrainPlan, "train-plan"),
    ):
        assert kind.__required_keys__ <= set(stages[name]), name
    assert stages["train"]["teacher"]["learnt"] == "maps"
    weights = (tmp_path / "run" / "train" / "weights.safetensors").stat().st_mtime_ns
    code, again, errors = run(*arguments)
    assert (tmp_path / "run" / "train" / "weights.safetensors").stat().st_mtime_ns == weights
    if code == 0:
        assert again["met"] and again["trained"] and "ap50" in again
        assert Path(again["report"]).exists()
    message = fails(2, *arguments[:4], 3, *arguments[5:])
    assert "another target_fps" in message and "--restart" in message
    assert "(seed 1 against 0): --restart" in fails(2, *arguments, "--seed", 1)


def test_a_build_begins_again(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the latency table is kept, and what is interrupted goes on as a new build."""
    workspace = Workspace(tmp_path / "run")
    for name in ("plan", "supernet-plan", "supernet", "profile", "thin", "train-plan", "train"):
        workspace.record(name, {"data": "elsewhere", "device": "another"})
    for folder in (workspace.supernet, workspace.train):
        folder.mkdir()
        for name in ("state.pt", "best.safetensors", "weights.safetensors"):
            (folder / name).write_bytes(b"old")

    def profile(*_: Any) -> None:
        raise HeatError("as far as the profile")

    monkeypatch.setattr(stage, "profile", profile)
    arguments = [
        "build", "--data", shapes, "--target-fps", 2, "--threads", 1, "--space", "micro",
        "--input-size", "96x128", "--out", workspace.root,
    ]  # fmt: skip
    assert "another data" in fails(2, *arguments)
    assert "as far as the profile" in fails(1, *arguments, "--restart")
    assert set(workspace.stages()) == {"plan", "profile"}
    left = sorted(path.name for path in workspace.train.glob("*.*"))
    assert left == ["weights.safetensors"]
    assert "as far as the profile" in fails(1, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["thin", "--target-fps", "0"], "--target-fps 0"),
        (["thin", "--target-fps", "-1"], "--target-fps -1"),
        (["thin", "--target-fps", "nan"], "--target-fps nan"),
        (["thin", "--target-fps", "many"], "--target-fps"),
        (["thin"], "--target-fps"),
        (["thin", "--target-fps", "5", "--device", "toaster"], "unknown device 'toaster'"),
        (["profile", "--device", "v100"], "v100 needs"),
        (["profile", "--device", "gtx-1080ti"], "gtx-1080ti needs"),
        (["profile", "--input-size", "100x100"], "--input-size"),
        (["profile", "--threads", "0"], "--threads 0"),
        (["export"], "run heat thin"),
        (["export", "--format", "tflite"], "tflite"),
        (["train", "--data", "nowhere"], "no data folder at nowhere"),
        (["supernet", "--data", "nowhere"], "no data folder at nowhere"),
        (["build", "--data", "nowhere", "--target-fps", "5"], "no data folder at nowhere"),
        (["eval"], "which data?"),
        (["eval", "--data", "nowhere"], "no data folder at nowhere"),
        (["detect", "nowhere", "x.jpg"], "nowhere is no bundle"),
        (["report"], "is empty"),
        (["describe", "gigantic"], "unknown preset 'gigantic'"),
        (["describe", "none.json"], "cannot read none.json"),
        (["data", "check", "nowhere"], "no data folder at nowhere"),
        (["data", "shapes", "x", "--train", "0"], "--train 0"),
        (["fly"], "fly"),
        (["thin", "--target-fps", "5", "--fast"], "--fast"),
    ],
)
def test_bad_input(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(2, *arguments)
    assert list(tmp_path.iterdir()) == [], "nothing half-written"


def test_broken_workspace_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    assert "run.json cannot be read" in fails(2, "report", "--out", tmp_path)
    (tmp_path / "run.json").write_text('{"format": 7, "stages": {}}')
    assert "format 7" in fails(2, "report", "--out", tmp_path)


def test_data_check_finds_what_is_wrong(shapes: Path, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "d"
    shutil.copytree(shapes, root)
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] = 0
    path.write_text(json.dumps(content))
    broken = root / "val" / content["images"][0]["file_name"].replace("train", "val")
    broken.write_bytes(b"no image")
    code, result, errors = run("data", "check", root)
    assert code == 0
    kinds = {problem["kind"] for problem in result["problems"]}
    assert kinds == {"degenerate box", "image cannot be decoded"}
    assert "degenerate box" in errors and broken.name in errors.replace("\n", "")
    assert result["splits"]["val"]["images"] == 8


@pytest.mark.parametrize(
    "arguments",
    [
        ["profile", "--threads", "1", "--space", "micro", "--input-size", "96x128"],
        ["supernet", "--space", "micro", "--input-size", "96x128", "--epochs", "50"],
    ],
)
def test_interrupt_is_one_line(shapes: Path, tmp_path: Path, arguments: list[str]) -> None:
    """Ctrl-C in a stage: one line, exit code 130, and every file that is there can be read."""
    out = tmp_path / "run"
    data = ["--data", str(shapes)]
    command = [sys.executable, "-m", "heat", *arguments, *data, "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(out.rglob("*.csv")) + list(out.rglob("*.pt")):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert errors.strip().splitlines()[-1].startswith("error: interrupted")
    assert "Traceback" not in errors
    assert not list(out.rglob("*.tmp"))

    for path in (out / "tables").glob("*.csv"):
        assert read_table(path).rows


def test_a_stale_table_is_refused_and_profiled_again(profiled: Profiled, tmp_path: Path) -> None:
    out = ["--out", profiled.copy(tmp_path / "run")]
    table = next((tmp_path / "run" / "tables").glob("*.json"))
    sidecar = json.loads(table.read_text())
    sidecar["conditions"]["runtime_version"] = "0.0.1"
    table.write_text(json.dumps(sidecar))
    message = fails(2, "thin", "--target-fps", 5, *out)
    assert "0.0.1" in message and "run heat profile again" in message
    code, _, errors = run("profile", *SMALL, *out)
    assert code == 0 and "it is measured again" in errors


def test_the_last_profile_decides(profiled: Profiled, tmp_path: Path) -> None:
    """thin uses the runtime profiled last; export the device and threads of the thinning."""
    out = ["--out", profiled.copy(tmp_path / "run")]
    for runtime in ("onnxruntime", "openvino"):
        assert run("profile", "--runtime", runtime, *SMALL, *out)[0] == 0
        code, thinned, errors = run("thin", "--target-fps", 1, *out)
        assert code == 0 and thinned["runtime"] == runtime and thinned["threads"] == 1, errors
    assert "--threads 0" in fails(2, "thin", "--target-fps", 1, "--threads", 0, *out)
    _, exported, _ = run("export", "--format", "openvino", *out)
    assert exported["threads"] == 1 and exported["predicted_fps"] == thinned["predicted_fps"]


def test_a_supernet_of_other_widths_is_refused(shapes: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "run"]
    size = ["--space", "micro", "--input-size", "96x128"]
    code, _, errors = run("supernet", "--data", shapes, *size, "--epochs", 1, *out)
    assert code == 0, errors
    assert "widths" in fails(2, "thin", "--target-fps", 5, "--space", "mini", *size[2:], *out)
    path = tmp_path / "run" / "supernet" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert "truncated" in fails(2, "thin", "--target-fps", 5, *out)


def test_an_edge_install_says_what_is_missing(tmp_path: Path) -> None:
    for missing, arguments in (("torch", "'describe', 'tiny'"), ("scipy", "'devices'")):
        program = (
            f"import sys\nsys.modules[{missing!r}] = None\n"
            f"from heat.cli import main\nsys.exit(main([{arguments}]))"
        )
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert f"needs {missing}: pip install 'heatdetr[build]'" in done.stderr


def test_a_preset_is_trained_and_exported_without_thinning(shapes: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "run"]
    size = ["--input-size", "96x128"]
    code, _, errors = run(
        "train", "--data", shapes, "--architecture", "pico", *size, "--epochs", 1, *out
    )
    assert code == 0, errors
    code, exported, errors = run("export", "--threads", 1, *out)
    assert code == 0, errors
    assert exported["trained"] is True and exported["predicted_fps"] is None
    assert "no finished thin" in fails(2, "train", "--data", shapes, "--restart", *out)


def test_a_searched_global_block_is_cw_on_a_cpu(shapes: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "run"]
    size = ["--space", "micro", "--input-size", "96x128"]
    short = ["--epochs", 1, "--batch-size", 8]
    for block in ("search", "oa"):
        code, _, errors = run(
            "supernet", "--data", shapes, *size, *short, "--global-block", block, "--restart", *out
        )
        assert code == 0, errors
        code, _, errors = run("thin", "--target-fps", 1, "--threads", 1, *out)
        assert code == 0, errors
        architecture = json.loads((tmp_path / "run/thin/architecture.json").read_text())
        assert architecture["global_block"] == ("cw" if block == "search" else "oa")
    code, trained, errors = run("train", "--data", shapes, "--inherit", *short, *out)
    assert code == 0 and trained["inherited"], errors


def test_a_table_keeps_what_it_was_measured_under(
    profiled: Profiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two profiles compared; a figure drawn; a second writer refused; thinned with its margin."""
    from heat.stages import show
    from latency_tables.probe.lock import only_one
    from latency_tables.stacks import Setup, measure_stacks

    small = partial(measure_stacks, setup=Setup(width=64, side=14))
    monkeypatch.setattr(show, "measure_stacks", small)
    first, second = profiled.copy(tmp_path / "a"), profiled.copy(tmp_path / "b")
    found = profiled.found
    assert found["precision"] == "f32"
    assert "write" in profiled.errors and found["conditions"]["runtime_version"]
    assert found["disturbance"] and found["memory_error"] is not None
    name = Path(found["table"]).name
    code, compared, errors = run(
        "profile", "--compare", first / "tables" / name, second / "tables" / name
    )
    assert code == 0 and compared["agree"] and compared["median_difference"] == 0, errors
    code, shown, errors = run("profile", "--show", found["device"], "--out", first)
    assert code == 0 and "stride 8" in " ".join(errors.split()) and "DeiT-LN" in errors
    assert all(Path(picture).read_text().startswith("<?xml") for picture in shown["pictures"])
    assert "no table of v1000" in fails(2, "profile", "--show", "v1000", "--out", first)
    with only_one(first / "tables" / name):
        assert "is writing" in fails(2, "profile", *SMALL, "--out", first)
    code, thinned, errors = run("thin", "--target-fps", 1, "--out", first)
    assert code == 0 and thinned["precision"] == "f32" and thinned["margin"] >= 0, errors
    assert thinned["measured_size_mb"] == pytest.approx(thinned["predicted_size_mb"], rel=0.05)


def test_memory_and_size_are_limits_too(profiled: Profiled, tmp_path: Path) -> None:
    out = ["--out", profiled.copy(tmp_path / "run")]
    roomy = ["--max-memory-mb", 10_000]  # memory is measured where it is limited
    code, full, errors = run("thin", "--target-fps", 1, *roomy, *SMALL, *out)
    assert code == 0 and full["steps"] == 0, errors
    limit = ["--max-size-mb", 0.8 * full["measured_size_mb"]]
    code, small, errors = run("thin", "--target-fps", 1, *limit, *roomy, *SMALL, *out)
    assert code == 0 and small["measured_size_mb"] <= limit[1] and small["steps"] > 0, errors
    memory = 0.5 * (full["measured_memory_mb"] + small["measured_memory_mb"])
    code, tight, errors = run("thin", "--target-fps", 1, "--max-memory-mb", memory, *SMALL, *out)
    assert code == 0 and tight["measured_memory_mb"] <= memory, errors
    assert tight["predicted_memory_mb"] is not None
    assert "--max-memory-mb 1" in fails(
        2, "thin", "--target-fps", 1, "--max-memory-mb", 1, *SMALL, *out
    )
    assert "memory" in fails(3, "thin", "--target-fps", 1, "--max-memory-mb", 5, *SMALL, *out)
    assert "--max-size-mb 0" in fails(2, "thin", "--target-fps", 1, "--max-size-mb", 0, *out)


def test_an_estimated_device_is_never_called_measured(tmp_path: Path) -> None:
    out = ["--out", tmp_path / "run"]
    size = ["--space", "micro", "--input-size", "96x128"]
    code, found, errors = run("profile", "--device", "v100", "--estimate", *size, *out)
    assert code == 0 and found["source"] == "estimated" and "ESTIMATED" in errors
    assert found["device"] == "v100" and not found["here"]
    message = fails(2, "thin", "--target-fps", 50, *out)
    assert "estimated, not of this machine" in message and "--trust-table" in message
    code, thinned, errors = run("thin", "--target-fps", 50, "--trust-table", *out)
    assert code == 0 and "ESTIMATED" in errors, errors
    assert thinned["source"] == "estimated" and thinned["measured_fps"] is None
    code, exported, errors = run("export", "--format", "onnx", *out)
    assert code == 0 and exported["predicted_fps"] is None, errors
    assert "there are ESTIMATED" in errors
    card = json.loads((tmp_path / "run/bundle-onnx/card.json").read_text())
    assert card["thinned_for"]["source"] == "estimated" and card["device"] != "v100"
    assert run("report", *out)[0] == 0
    assert "ESTIMATED" in (tmp_path / "run/report.html").read_text()
    code, far, errors = run("thin", "--target-fps", 1.5e4, "--trust-table", *out)
    assert code == 3 and not far["met"]
    message = fails(2, "profile", "--device", "v100", "--few-shot", 3, *size, *out)
    assert "give --estimate" in message


def test_a_few_measured_rows_correct_an_estimate(tmp_path: Path) -> None:
    device = detect_cpu().slug
    if device not in load_devices():
        pytest.skip(f"no published figures of {device}")
    out = ["--out", tmp_path / "run", *SMALL]
    code, found, errors = run("profile", "--device", device, "--estimate", "--few-shot", 6, *out)
    assert code == 0 and "corrected by the others" in errors, errors
    assert found["error_before"] > 0 and found["error_after"] > 0
    message = fails(2, "profile", "--device", "cpu-i7", "--estimate", "--few-shot", 3, *out)
    assert "measures on the real cpu-i7" in message


def test_a_pack_is_written_whole(tmp_path: Path) -> None:
    pack = tmp_path / "probe.pyz"
    size = ["--space", "micro", "--input-size", "64x64"]
    code, made, errors = run("profile", "--pack", pack, *size, "--out", tmp_path / "run")
    assert code == 0 and pack.stat().st_size > 1e5, errors
    assert made["then"] == "heat profile --unpack probe.results.jsonl"
    assert is_pack(pack), "it may be written again"
    missing = fails(2, "profile", "--unpack", tmp_path / "none.jsonl", "--out", tmp_path / "run")
    assert "holds no results" in missing
