"""What files of others cannot do: execute, leave their folder, show secrets, use the network."""

import ast
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.edge.detect import Bundle
from heat.workspace import Workspace
from latency_tables.conditions import Conditions
from latency_tables.remote import SSH_VARIABLE, Host
from supernet.checkpoint import read_state_dict
from supernet.data.coco import load_split
from supernet.errors import BundleError, CheckpointError, TableError, UserError
from supernet.train.transfer import read_source
from tests.command_line import fails, run
from tests.fuzzed_models import write_bundle
from tests.no_network import NetworkUsedError, guard_of
from tests.test_layers import sources

REFUSED_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "telnetlib"}
REFUSED_CALLS = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "np.load",
    "numpy.load",
    "yaml.unsafe_load",
}


def test_no_code_executes_what_a_file_holds() -> None:
    """No pickle, no shell, no eval; torch.load reads weights only; yaml builds plain values."""
    found = []
    for name, path in sources().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
                found += [f"{name}: {n}" for n in names if n.split(".")[0] in REFUSED_MODULES]
            if not isinstance(node, ast.Call):
                continue
            called, how = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
            shell = isinstance(how.get("shell"), ast.Constant) and how["shell"].value
            unsafe = called == "torch.load" and ast.unparse(how.get("weights_only", node)) != "True"
            loose = called == "yaml.load" and ast.unparse(how.get("Loader", node)) != "_Texts"
            if called in REFUSED_CALLS or shell or unsafe or loose:
                found.append(f"{name}: {called}")
    assert found == []


class Evil:
    def __reduce__(self) -> object:
        return (Path("executed").touch, ())


def test_a_pickle_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, data in (("a.pth", {"model": Evil()}), ("b.pth", Evil())):
        torch.save(data, tmp_path / name)
    (tmp_path / "c.pth").write_bytes(pickle.dumps(Evil()))
    for name in ("a.pth", "b.pth", "c.pth"):
        with pytest.raises(CheckpointError):
            read_state_dict(tmp_path / name)
        with pytest.raises(CheckpointError):
            read_source(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_a_state_to_resume_from_is_not_executed(shapes: Path, tmp_path: Path) -> None:
    train = ["train", "--data", shapes, "--architecture", "pico", "--input-size", "64x64"]
    (tmp_path / "train").mkdir()
    torch.save({"fingerprint": Evil()}, tmp_path / "train" / "state.pt")
    message = fails(2, *train, "--epochs", 1, "--resume", "--out", tmp_path)
    assert "state.pt" in message and not Path("executed").exists()


@pytest.mark.parametrize(
    "name", ["{other}/a.jpg", "../../other/a.jpg", "link.jpg", "deep/link/a.jpg"]
)
def test_annotations_stay_in_their_folder(name: str, shapes: Path, tmp_path: Path) -> None:
    root, other = tmp_path / "set", tmp_path / "other"
    shutil.copytree(shapes, root)
    other.mkdir()
    shutil.copy(next((root / "train").glob("*.*")), other / "a.jpg")
    (root / "train" / "link.jpg").symlink_to(other / "a.jpg")
    (root / "train" / "deep").mkdir()
    (root / "train" / "deep" / "link").symlink_to(other)
    file = root / "annotations" / "instances_train.json"
    raw = json.loads(file.read_text())
    before = len(load_split(root, "train").records)
    raw["images"][0]["file_name"] = name.format(other=other)
    file.write_text(json.dumps(raw))
    data = load_split(root, "train")
    assert len(data.records) == before - 1
    assert {p.kind for p in data.problems} == {"image outside the data folder"}


def test_a_set_may_be_laid_out_by_links(shapes: Path, tmp_path: Path) -> None:
    """The folder itself, or a split's folder, is a link; images are hard links, or in the root."""
    (tmp_path / "all").symlink_to(shapes)
    whole = len(load_split(tmp_path / "all", "train").records)
    root = tmp_path / "set"
    root.mkdir()
    shutil.copytree(shapes / "annotations", root / "annotations")
    (root / "train").symlink_to(shapes / "train")
    assert len(load_split(root, "train").records) == whole
    (root / "train").unlink()
    (root / "train").mkdir()
    for file in (shapes / "train").iterdir():
        os.link(file, root / "train" / file.name)
    assert load_split(root, "train").problems == ()
    first = next((root / "train").iterdir())
    first.rename(root / first.name)
    (root / "train" / first.name).symlink_to(root / first.name)
    assert load_split(root, "train").problems == ()


def test_a_bundle_is_loaded_after_its_hashes_are_checked(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    folder = tmp_path / "bundle"
    card = json.loads((folder / "card.json").read_text())
    Bundle(folder).close()
    model = folder / card["model"]
    content = model.read_bytes()
    model.write_bytes(content + b"\0")
    with pytest.raises(BundleError, match="is not the file the card describes"):
        Bundle(folder)
    assert "is not the file the card describes" in fails(2, "bench", folder)
    model.unlink()
    (tmp_path / "elsewhere").write_bytes(content)
    model.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is a link to outside its folder"):
        Bundle(folder)
    model.unlink()
    model.write_bytes(content)
    del card["files"][card["model"]]
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(BundleError, match="has no hash of model"):
        Bundle(folder)


def test_names_stay_in_their_folder(tmp_path: Path) -> None:
    conditions = Conditions(
        device="box", model="m", runtime="onnxruntime", runtime_version="1", precision="f32",
        threads=1, height=64, width=64, forms=1,
    )  # fmt: skip
    for strange in ("../box", "/tmp/box", "a\\b", "a\nb"):
        with pytest.raises(TableError, match="is no name of a table"):
            replace(conditions, device=strange)
    workspace = Workspace(tmp_path / "run")
    (tmp_path / "run" / "fleet").mkdir(parents=True)
    (tmp_path / "run" / "fleet" / "camera").symlink_to(tmp_path)
    assert workspace.member("server").root == tmp_path / "run" / "fleet" / "server"
    for name in ("camera", "../../camera"):
        with pytest.raises(UserError, match="leads out of"):
            workspace.member(name)


def test_another_machines_shell_gets_no_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for ssh executes, as ssh does, its last argument in a shell."""
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\nfor last; do :; done\ncd "$(dirname "$0")"\nsh -c "$last"\n')
    ssh.chmod(0o755)
    monkeypatch.setenv(SSH_VARIABLE, str(ssh))
    pack = tmp_path / "pack"
    pack.write_text("print(1)")
    with pytest.raises(TableError):
        Host("box", python="python3; touch executed;").measure(pack, "a; touch executed", pack)
    assert not (tmp_path / "executed").exists()


SECRET = "hunter2"
STREAMS = (
    f"rtsp://me:{SECRET}@127.0.0.1:1/live",
    f"http://127.0.0.1:1/a.mp4?token={SECRET}",
    f"rtsp://127.0.0.1:1/user=admin_password={SECRET}",
)


def test_a_streams_password_is_shown_nowhere(tmp_path: Path) -> None:
    """Neither by HEAT nor by OpenCV and FFmpeg, whose lines come from the same process."""
    write_bundle(tmp_path)
    command = [sys.executable, "-m", "heat", "detect", tmp_path / "bundle", *STREAMS]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [*command, "--save", "out"], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 2 and done.stderr.count("***") >= len(STREAMS), done.stderr
    shown = [done.stdout, done.stderr]
    shown += [path.read_text("utf-8", "replace") for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(SECRET in text for text in shown)


def test_a_databases_password_is_shown_nowhere(tmp_path: Path) -> None:
    run("profile", "--device", "cpu-i7", "--estimate", "--space", "micro", "--input-size", "64x96",
        "--out", tmp_path)  # fmt: skip
    database = f"postgresql+psycopg://me:{SECRET}@127.0.0.1:1/studies"
    message = fails(2, "thin", "--target-fps", 50, "--trust-table", "--search", "tpe", "--study",
                    database, "--out", tmp_path)  # fmt: skip
    assert "***" in message and SECRET not in message
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not any(SECRET.encode() in path.read_bytes() for path in files)


def test_the_guard_against_the_network_works() -> None:
    """It watches this whole test run (conftest.py), and so every command that a test runs."""
    with pytest.raises(NetworkUsedError):
        socket.create_connection(("192.0.2.1", 80), timeout=0.1)
    with pytest.raises(NetworkUsedError):
        socket.getaddrinfo("example.com", 80)


COMMANDS = """
data shapes set --train 6 --val 4
data check set
describe pico --input-size 64x96
devices
profile --device cpu-i7 --estimate --space micro --input-size 64x96
thin --target-fps 50 --trust-table
train --data set --epochs 1 --input-size 64x96 --workers 0
eval
export --format onnx
export --format openvino
detect heat-run/bundle-openvino set/val
report
doctor
"""
PROGRAM = """
import sys
from heat.cli import main
for line in sys.stdin:
    if line.strip():
        code = main(line.split())
        print(code, line.strip(), file=sys.stderr)
        assert code in (0, 3), line
"""


@pytest.mark.slow
def test_no_command_uses_the_network(tmp_path: Path) -> None:
    """The main commands and all processes that they start, with every connection refused."""
    guard = tmp_path / "guard"
    guard.mkdir()
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{guard_of(guard)}{os.pathsep}{root}"}
    environment |= {"HOME": str(tmp_path), "HEAT_PROCESSES": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=COMMANDS, capture_output=True, text=True,
        cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "NetworkUsedError" not in done.stderr
    assert not (tmp_path / "intel").exists(), "OpenVINO's telemetry was asked for"
    assert not (tmp_path / ".cache" / "Microsoft").exists(), "ONNX Runtime's telemetry is on"
    assert np.all([(tmp_path / "heat-run" / name).exists() for name in ("run.json", "report.html")])


def test_onnx_runtime_is_loaded_without_its_telemetry(tmp_path: Path) -> None:
    """It reports to Microsoft from native code, which no guard of Python's sockets sees."""
    program = (
        "from deploy.edge.runtimes import open_session; import onnx.helper as h; "
        "x, y = (h.make_tensor_value_info(n, 1, [1]) for n in 'xy'); "
        "graph = h.make_graph([h.make_node('Relu', ['x'], ['y'])], 'g', [x], [y]); "
        "imports = [h.make_opsetid('', 17)]; "
        "model = h.make_model(graph, opset_imports=imports, ir_version=8); "
        "open_session('onnxruntime', model.SerializeToString(), 1).close()"
    )
    root = Path(__file__).parent.parent
    environment = {key: value for key, value in os.environ.items() if "TELEMETRY" not in key}
    environment |= {"PYTHONPATH": str(root), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == [], "it keeps an id of the machine there"


def test_openvino_is_imported_without_its_telemetry(tmp_path: Path) -> None:
    """Its package reports to Google Analytics whenever it is imported; not from HEAT."""
    program = (
        "from deploy.edge.session import import_runtime as get; get('openvino'); import sys; "
        "print([n for n in sys.modules if 'openvino_telemetry' in n])"
    )
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{guard_of(tmp_path)}{os.pathsep}{root}"}
    environment["HOME"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert not (tmp_path / "intel").exists(), "it makes an id of the user there"
