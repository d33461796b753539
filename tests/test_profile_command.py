import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import heat.stages.profile
from heat.views.outputs import is_pack
from heat.workspace import Workspace
from latency_tables.device_file import load_devices
from latency_tables.plan import Checks
from latency_tables.probe.machine import detect_cpu
from latency_tables.table import LatencyTable
from latency_tables.table_file import read_table
from tests.command_line import SMALL, fails, run


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
    with pytest.MonkeyPatch.context() as patch:  # a fourth network checks the memory model
        checks = partial(Checks, networks=4, memory=4, budget_s=1.5)
        patch.setattr(heat.stages.profile, "Checks", checks)
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
    assert full["runtime"] == "onnxruntime" and full["threads"] == 1
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
    assert run("report")[0] == 0


@pytest.fixture
def measured_before(profiled: Profiled, monkeypatch: pytest.MonkeyPatch) -> LatencyTable:
    """Let `heat profile` take over the samples of `profiled` instead of measuring."""
    measured = read_table(Path(profiled.found["table"]))

    def take(_: object, table: LatencyTable, *__: object) -> None:
        table.add(measured.samples, measured.networks, measured.history)
        table.refit(measured.rows)

    monkeypatch.setattr(heat.stages.profile, "measure_table", take)
    return measured


def test_a_stale_table_is_refused_and_profiled_again(
    profiled: Profiled, measured_before: LatencyTable, tmp_path: Path
) -> None:
    out = ["--out", profiled.copy(tmp_path / "run")]
    table = next((tmp_path / "run" / "tables").glob("*.json"))
    sidecar = json.loads(table.read_text())
    sidecar["conditions"]["runtime_version"] = "0.0.1"
    table.write_text(json.dumps(sidecar))
    message = fails(2, "thin", "--target-fps", 5, *out)
    assert "0.0.1" in message and "run heat profile again" in message
    code, found, errors = run("profile", *SMALL, *out)
    assert code == 0 and "it is measured again" in errors
    again = read_table(Path(found["table"]))
    assert again.conditions == measured_before.conditions and again.samples


@pytest.mark.usefixtures("measured_before")
def test_the_last_profile_decides(profiled: Profiled, tmp_path: Path) -> None:
    """thin uses the runtime profiled last; export the device and threads of the thinning."""
    workspace = Workspace(profiled.copy(tmp_path / "run"))
    assert profiled.found["runtime"] == "onnxruntime"
    workspace.record("thin", profiled.found)  # as a thinning before the second profile leaves it
    out = ["--out", workspace.root]
    assert run("profile", "--runtime", "openvino", *SMALL, *out)[0] == 0
    code, thinned, errors = run("thin", "--target-fps", 1, *out)
    assert code == 0 and thinned["runtime"] == "openvino" and thinned["threads"] == 1, errors
    assert "--threads 0" in fails(2, "thin", "--target-fps", 1, "--threads", 0, *out)
    _, exported, _ = run("export", "--format", "openvino", *out)
    assert exported["threads"] == 1 and exported["predicted_fps"] == thinned["predicted_fps"]


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
    assert all(Path(figure).read_text().startswith("<?xml") for figure in shown["pictures"])
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
    ledger = (tmp_path / "run/thin/thinning.csv").read_bytes()
    code, far, errors = run("thin", "--target-fps", 1.5e4, "--trust-table", *out)
    assert code == 3 and not far["met"]
    assert (tmp_path / "run/thin/thinning.csv").read_bytes() == ledger
    assert len((tmp_path / "run/thin/searching.csv").read_bytes()) > len(ledger)
    assert run("report", *out)[0] == 0  # of the thinning before, which is kept
    assert "ESTIMATED" in (tmp_path / "run/report.html").read_text()
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
