"""Devices that one does not sit at: packs, results, and a real sshd on the loopback address.

The other side is a Python without torch: it sees numpy and ONNX Runtime and nothing else.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from heat.cli import main
from heat.stages.elsewhere import profile_host, unpack_results
from heat.workspace import Workspace
from latency_tables.devices import declared
from latency_tables.pack import compressible, probe_script, table_from_results, write_pack
from latency_tables.plan import Checks, check_networks
from latency_tables.probe import program
from latency_tables.probe.machine import Gpu
from latency_tables.probe.program import read_results
from latency_tables.remote import Host
from latency_tables.table_file import read_table, write_table
from supernet.errors import DeviceError, TableError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.supernet import SearchSpace

TEMPLATE = Architecture(
    widths=(32, 32, 32, 32), blocks=("R",) * 4, input_size=(64, 96), num_classes=2,
    t1_blocks=1, t2_blocks=1,
)  # fmt: skip
SPACE = SearchSpace(template=TEMPLATE, positions=(1, 1, 1, 1))
CHECKS = Checks(networks=3, memory=1)


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has numpy and ONNX Runtime, and neither torch nor HEAT."""
    folder = tmp_path_factory.mktemp("bare")
    for module in (np, onnxruntime):
        package = Path(module.__file__).parent
        (folder / package.name).symlink_to(package)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            (folder / libraries.name).symlink_to(libraries)
        for facts in package.parent.glob(f"{package.name}-*.dist-info"):
            (folder / facts.name).symlink_to(facts)
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} -S "$@"\n')
    script.chmod(0o755)
    for missing in ("torch", "heat", "supernet"):
        command = [script, "-c", f"import {missing}"]
        assert subprocess.run(command, capture_output=True, cwd=folder, check=False).returncode
    return script


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pack") / "heat-probe.pyz"
    networks = check_networks(TEMPLATE, SPACE.widths, SPACE.positions, CHECKS.networks)
    entries = [entry for network in networks for entry in network.entries().values()]
    target = declared("cpu", threads=1)
    made = write_pack(path, target, entries, networks, CHECKS, SPACE.to_dict(), TEMPLATE.input_size)
    assert made["models"] > len(networks) and made["megabytes"] < 10
    return path


def measure(python: Path, pack: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, pack, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=pack.parent,
    )


@pytest.fixture(scope="session")
def results(bare_python: Path, pack: Path) -> Path:
    done = measure(bare_python, pack)
    assert done.returncode == 0, done.stderr
    assert "ETA" in done.stderr
    return pack.with_suffix(".results.jsonl")


def test_the_probe_is_one_file_without_torch() -> None:
    script = probe_script()
    assert "import torch" not in script and "import onnx\n" not in script
    assert "from supernet" not in script and script.count("__main__") == 1
    compile(script, "probe", "exec")


def test_large_weights_are_packed_small(unit: Architecture) -> None:
    import zlib

    from latency_tables.models import write_network

    model = write_network(unit.with_(widths=(128,) * 4)).onnx
    small = compressible(model)
    assert len(small) == len(model) and len(zlib.compress(small)) < len(model) / 10


def test_carried_results_become_a_table(results: Path, tmp_path: Path) -> None:
    found = unpack_results(Workspace(tmp_path), results)
    assert found["entries"] > 20 and found["source"] == "measured" and not found["here"]
    assert found["held_out_error"] is not None and found["detected"]["cores"] >= 1
    before = read_table(Path(found["table"]))
    again = unpack_results(Workspace(tmp_path), results)
    assert again["entries"] == found["entries"]
    table = read_table(Path(found["table"]))
    assert len(table.samples) == len(before.samples)
    table.conditions = replace(table.conditions, runtime_version="0.0.1")
    write_table(table, tmp_path / "tables")
    with pytest.raises(TableError, match=r"do not merge .*0\.0\.1.*another --out"):
        unpack_results(Workspace(tmp_path), results)
    table = table_from_results(results)
    assert table.memory is not None and table.conditions.precision == "f32"
    network = check_networks(TEMPLATE, SPACE.widths, SPACE.positions, CHECKS.networks)[0]
    assert table.predict_ms(network) > 0


def test_results_are_of_the_day_and_the_graphs_that_were_measured(
    results: Path, tmp_path: Path
) -> None:
    """Unpacked on another day, or by a newer HEAT, they counted as new ones."""
    head, *records = read_results(results)
    head["plan"]["forms"] = 1
    days = [{**record, "date": "2020-02-29"} for record in records]
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (head, *days)))
    table = table_from_results(path)
    dates = {sample.date for sample in (*table.samples, *table.networks)}
    assert dates == {"2020-02-29"} and table.conditions.forms == 1


def test_a_probe_on_another_gpu_does_not_go_on(pack: Path) -> None:
    """The GPUs are made up: none is at hand."""
    card = Gpu("NVIDIA H200", "570.10", "1980 MHz", "345 MHz", 143771).to_json()
    head = {**program.header(program.Pack(pack), "f32"), "gpus": [card]}
    assert not program.differs({**head, "gpus": [{**card, "clock_now": "1980 MHz"}]}, head)
    assert program.differs({**head, "gpus": [{**card, "driver": "580.1"}]}, head)
    assert program.differs({**head, "gpus": []}, head)


def test_a_killed_probe_goes_on(bare_python: Path, pack: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    process = subprocess.Popen(
        [bare_python, pack, "--results", path], stderr=subprocess.DEVNULL, cwd=tmp_path
    )
    while not path.exists() or path.read_text().count("\n") < 2:
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = read_results(path)
    with path.open("a") as stream:
        stream.write('{"batch": 99, "cut')
    done = measure(bare_python, pack, "--results", path)
    assert done.returncode == 0, done.stderr
    after = read_results(path)
    assert after[: len(before)] == before and len(after) > len(before)
    assert table_from_results(path).calibration.checks


def test_a_header_that_was_cut_is_written_anew(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one was joined to it, and no further start could read the file."""
    path = tmp_path / "r.jsonl"
    path.write_text('{"results_format": 2, "plan": {"cut')

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "Bench", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            program.measure_pack(program.Pack(pack), path, ())
        assert len(read_results(path)) == 1


def test_broken_results_are_refused(results: Path, tmp_path: Path) -> None:
    records = read_results(results)

    def fails(match: str, lines: list[dict[str, object]], kind: type = TableError) -> None:
        path = tmp_path / "r.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(kind, match=match):
            table_from_results(path)

    fails("holds no results", [])
    fails("was made by probe 1234.*--pack", [{**records[0], "probe": "1234"}, *records[1:]])
    fails("0 of .* batches.*goes on", records[:1])
    executed = [{**records[0], "executed": "bf16"}, *records[1:]]
    fails("executes f32 as bf16 there: use --precision bf16", executed, DeviceError)
    path = tmp_path / "junk.jsonl"
    path.write_text("no json\n")
    with pytest.raises(TableError, match="is no results file"):
        table_from_results(path)


def test_results_of_another_pack_are_refused(
    bare_python: Path, pack: Path, results: Path, tmp_path: Path
) -> None:
    head, *rest = read_results(results)
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [{**head, "pack": "x"}, *rest]))
    done = measure(bare_python, pack, "--results", path)
    assert done.returncode == 2 and "results of another pack" in done.stderr
    changed = {**head, "runtime_version": "0.0.1"}
    path.write_text("".join(json.dumps(r) + "\n" for r in [changed, *rest]))
    done = measure(bare_python, pack, "--results", path)
    assert done.returncode == 2 and "remove it" in done.stderr


@pytest.fixture(scope="session")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The ssh command that reaches a real sshd on the loopback address."""
    program = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin:/usr/bin")
    if program is None or shutil.which("ssh") is None:
        pytest.skip("no sshd on this machine: apt install openssh-server")
    folder = tmp_path_factory.mktemp("ssh")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name]
        subprocess.run(command, check=True)
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile {folder}/pid\n"
        f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nUsePAM no\n"
        f"PasswordAuthentication no\nSetEnv HOME={folder}\n"
    )
    daemon = subprocess.Popen([program, "-D", "-e", "-f", folder / "config"])
    known = f"-o StrictHostKeyChecking=no -o UserKnownHostsFile={folder}/known -o LogLevel=ERROR"
    command = f"ssh -p {port} -i {folder}/user {known}"
    for _ in range(50):
        done = subprocess.run([*command.split(), "127.0.0.1", "true"], check=False)
        if done.returncode == 0:
            break
        time.sleep(0.1)
    else:
        daemon.kill()
        pytest.skip("the sshd of this machine does not let the test in")
    yield command
    daemon.terminate()
    daemon.wait()


def test_a_host_is_profiled_over_ssh(
    ssh: str, bare_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: pack, send, run without torch, fetch, table; the connection drops once."""
    dropped = tmp_path / "dropped"
    wrapper = tmp_path / "ssh"
    wrapper.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *--results*) if [ ! -e {dropped} ]; then touch {dropped};\n'
        f'timeout -s KILL 6 {ssh} "$@"; exit 255; fi;; esac\n'
        f'exec {ssh} "$@"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("HEAT_SSH_COMMAND", str(wrapper))
    monkeypatch.setattr("heat.stages.elsewhere.Checks", lambda: CHECKS)
    monkeypatch.setattr("latency_tables.remote.WAIT_S", 0.2)
    workspace = Workspace(tmp_path / "run")
    target = declared("cpu", threads=1)
    found = profile_host(workspace, target, SPACE, "127.0.0.1", str(bare_python))
    assert dropped.exists()
    assert found["host"] == "127.0.0.1" and found["entries"] > 20
    assert Path(found["table"]).exists()
    # The table of a machine that is not here thins, trusted, by prediction only.
    assert main(["thin", "--target-fps", "1", "--out", str(workspace.root)]) == 2
    assert main(["thin", "--target-fps", "1", "--trust-table", "--out", str(workspace.root)]) == 0
    thinned = workspace.need("thin", "heat thin")
    assert thinned["source"] == "measured" and thinned["measured_fps"] is None


def test_a_host_that_cannot_be_reached_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pack: Path
) -> None:
    monkeypatch.setenv("HEAT_SSH_COMMAND", "ssh -p 1")
    monkeypatch.setattr("latency_tables.remote.WAIT_S", 0.01)
    with pytest.raises(DeviceError, match=r"127\.0\.0\.1 cannot be reached to look for the probe"):
        Host("127.0.0.1").measure(pack, "x", tmp_path / "r.jsonl")
    with pytest.raises(DeviceError, match="USER@BOX"):
        Host("-oProxyCommand=evil")


def test_a_pack_that_was_sent_in_part_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part was left under the pack's name, and never replaced."""
    box, cut = tmp_path / "box", tmp_path / "cut"
    box.mkdir()
    wrapper = tmp_path / "ssh"
    wrapper.write_text(
        f"#!/bin/sh\ncd {box}\necho Welcome there\nfor command; do :; done\n"
        f'case "$command" in *"cat >"*) if [ ! -e {cut} ]; then touch {cut};\n'
        'head -c 10 | sh -c "$command"; exit 255; fi;; esac\n'
        'exec sh -c "$command"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("HEAT_SSH_COMMAND", str(wrapper))
    monkeypatch.setattr("latency_tables.remote.ATTEMPTS", 1)
    pack = tmp_path / "pack.pyz"
    pack.write_text("import sys\nopen(sys.argv[2], 'w').write('measured')\n")
    host = Host("box", python=sys.executable)
    with pytest.raises(DeviceError, match="to send the probe"):
        host.measure(pack, "x", tmp_path / "r.jsonl")
    assert host.measure(pack, "x", tmp_path / "r.jsonl").read_text() == "measured"
    left = {path.name for path in (box / ".cache" / "heat").iterdir()}
    assert left == {"x.pyz"}
    # What a run left there was taken for the results of the next one, which measured nothing.
    pack.write_text("import sys\nopen(sys.argv[2], 'a').write('measured again')\n")
    assert host.measure(pack, "y", tmp_path / "r.jsonl").read_text() == "measured again"
    assert host.measure(pack, "y", tmp_path / "r.jsonl").read_text() == "measured again"
