import inspect
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from heat.cli import COMMANDS, app
from heat.commands.outcomes import summary
from latency_tables.table_file import read_table
from tests.command_line import fails, run

OPTIONS = {
    "adopt": "checkpoint architecture input_size data restart out",
    "bench": "models runtime precision threads rounds throughput input_size picture",
    "completion": "shell",
    "build": "data target_fps device runtime threads minutes format space input_size output_stride "
    "head boxes backbone distil calibrate seed restart out",
    "data cells": "folder train val seed labels",
    "data check": "folder input_size output_stride",
    "data convert": "source folder from_ to images val seed",
    "data shapes": "folder train val seed labels",
    "describe": "what input_size",
    "detect": "bundle sources score save show frames labels all_boxes tiles track "
    "hold_fps json threads",
    "devices": "",
    "doctor": "device out",
    "eval": "data split bundle network head attention rounds window clusters calibrate out",
    "export": "format precision raw dynamic_batch opset max_ap_drop calibrate serving device gpu "
    "quantizer threads images network head attention rounds window clusters ladder data out",
    "fleet": "targets data space input_size output_stride head boxes supernet_epochs epochs "
    "batch_size precision backbone finetune calibrate workers seed restart out",
    "init": "",
    "label": "images teacher score data out",
    "pretrain": "data teacher feature teacher_size teacher_norm mean std views cache_gb "
    "architecture input_size output_stride epochs batch_size accumulate learning_rate drop_path "
    "precision workers compile tensorboard seed resume restart out",
    "profile": "device runtime precision threads spinning pinning input_size space "
    "output_stride head boxes global_block data host host_python pack unpack estimate few_shot "
    "compare show out",
    "report": "data out",
    "supernet": "data space input_size output_stride head boxes epochs batch_size accumulate "
    "learning_rate ema_decay train_precision logit_learning_rate noise straight_through "
    "global_block backbone elastic elastic_epochs drawn teach_from targets workers seed resume "
    "restart show out",
    "thin": "target_fps max_latency_ms at max_memory_mb max_size_mb device runtime precision "
    "threads space input_size data trust_table ap_drop search trials study frontier targets "
    "explain diff out",
    "train": "data architecture input_size output_stride head boxes backbone weights teacher "
    "unlabelled attention rounds window recipe epochs batch_size accumulate learning_rate schedule "
    "drop_path assign balanced precision inherit finetune eval_every patience workers compile "
    "tensorboard seed resume restart out",
}
"""New flags are deliberate: this list changes with them."""


def test_options_are_deliberate() -> None:
    named = [
        " ".join((*(() if group is app else group.name), name or function.__name__))
        for group, function, name, _ in COMMANDS
    ]
    registered = {name for name in app if not name.startswith("-")} - {"data"}
    registered |= {f"data {name}" for name in app["data"] if not name.startswith("-")}
    assert sorted(named) == sorted(OPTIONS) == sorted(registered)
    for name, options in OPTIONS.items():
        *groups, command = name.split()
        function = (app[groups[0]] if groups else app)[command].default_command
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
        assert name.split()[0] in done.stdout


def test_describe_prints_the_specs_integers() -> None:
    code, result, errors = run("describe", "medium", "--input-size", "832x1344")
    assert code == 0
    assert result["macs_conv_linear"] == 79_396_402_176
    assert result["macs_attention"] == 999_014_016
    assert "sam3_fuse" in errors


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


def test_an_inner_command_names_its_own_help() -> None:
    assert "(heat data shapes --help)" in fails(2, "data", "shapes", "--colour", "red")
    assert "(heat data --help)" in fails(2, "data", "nothing")
    assert "(heat thin --help)" in fails(2, "thin", "--colour", "red")


def test_results_are_shown_in_words() -> None:
    assert "params deployed" in summary("describe", {"params_deployed": 3, "architecture": {}})
    assert "uncertain list  u.csv" in summary("label", {"images": 2, "uncertain_list": "u.csv"})
    assert summary("data", {"data": "shapes", "train": 6, "val": 4}).splitlines() == [
        "train  6", "val    4", "data   shapes"
    ]  # fmt: skip
