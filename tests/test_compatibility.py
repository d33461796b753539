"""Files of earlier versions are read; those of a newer one name what to install.

`formats/` has a workspace as each released version wrote it.
"""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from deploy.edge.detect import Bundle, read_card
from heat.stages.network import load_network
from heat.thinning.thinned import find_thinned
from heat.workspace import Workspace
from latency_tables.pack import table_from_results
from latency_tables.table_file import read_table
from supernet.checkpoint import load_weights, read_info
from supernet.errors import HeatError, UserError, wrong_format
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
from tests.command_line import fails
from tests.fuzzed_readers import write_results

FORMATS = Path(__file__).parent / "formats"
RELEASED = sorted(path.stem for path in FORMATS.glob("*.zip"))


@pytest.fixture(params=RELEASED)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A workspace as a released version left it."""
    with zipfile.ZipFile(FORMATS / f"{request.param}.zip") as archive:
        archive.extractall(tmp_path)
    return tmp_path


def test_every_format_has_a_fixture() -> None:
    assert "0.1.0" in RELEASED and "0.2.0" in RELEASED


def test_a_workspace_is_read(old: Path) -> None:
    workspace = Workspace(old)
    stages = workspace.stages()
    assert stages["thin"]["runtime"] == "onnxruntime" and stages["profile"]["source"] == "estimated"
    for which, classes in (("thinned", 80), ("trained", 2)):
        network = load_network(workspace, which=which).network
        assert network.architecture.input_size == (64, 96)
        assert network.architecture.num_classes == classes


def test_a_thinning_of_0_1_0_is_to_be_done_again(tmp_path: Path) -> None:
    """It promised another frame rate (typical, not sustained), which is not taken for today's."""
    for version, refused in (("0.1.0", True), ("0.2.0", False)):
        with zipfile.ZipFile(FORMATS / f"{version}.zip") as archive:
            archive.extractall(tmp_path / version)
        workspace = Workspace(tmp_path / version)
        if refused:
            with pytest.raises(UserError, match="no result of this version's heat thin"):
                find_thinned(workspace)
        else:
            assert find_thinned(workspace) is not None


def test_a_table_is_read(old: Path) -> None:
    (path,) = (old / "tables").glob("*.csv")
    table = read_table(path)
    assert table.estimated and table.conditions.device == "cpu-i7" and len(table.rows) > 100
    assert all(row.ms > 0 for row in table.rows.values())


def test_weights_are_read(old: Path) -> None:
    path = old / "train" / "weights.safetensors"
    info = read_info(path)
    assert info.names == ("cat", "dog") and info.finished
    network = Detector(Architecture.from_json(info.description))
    load_weights(path, network)
    assert {float(v.mean()) for k, v in network.state_dict().items() if "running_var" in k} == {1.0}


def test_a_bundle_runs(old: Path) -> None:
    with Bundle(old / "bundle-onnx") as bundle:
        found = bundle.detect(np.full((48, 70, 3), 90, np.uint8), score=0.05)
    assert len(found.scores) > 0 and (found.boxes_xyxy_px <= [70, 48, 70, 48]).all()


def raised(path: Path, key: str, to: int) -> None:
    record = json.loads(path.read_text())
    record[key] = to
    path.write_text(json.dumps(record))


def raised_weights(path: Path, key: str, to: int) -> None:
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    save_file(load_file(path), path, {**header, key: str(to)})


def raised_results(path: Path, key: str, to: int) -> None:
    write_results(path.parent)
    head, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(head), key: to}), *rest, ""]))


TABLE = "tables/cpu-i7-onnxruntime-f32-t6-64x96-estimated"
READERS: dict[str, tuple[Callable[[Path, str, int], None], Callable[[Path], object]]] = {
    "run.json": (raised, lambda path: Workspace(path.parent).stages()),
    "thin/architecture.json": (raised, Architecture.load),
    "bundle-onnx/card.json": (raised, lambda path: read_card(path.parent)),
    f"{TABLE}.json": (raised, lambda path: read_table(path.with_suffix(".csv"))),
    "train/weights.safetensors": (raised_weights, read_info),
    "results.jsonl": (raised_results, table_from_results),
}


@pytest.mark.parametrize("name", READERS)
def test_a_newer_file_names_what_to_install(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(FORMATS / "0.2.0.zip") as archive:
        archive.extractall(tmp_path)
    change, read = READERS[name]
    change(tmp_path / name, "results_format" if name == "results.jsonl" else "format", 99)
    with pytest.raises(HeatError, match=r"format 99 is of a newer HEAT.*pip install --upgrade"):
        read(tmp_path / name)


def test_a_newer_state_names_what_to_install(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    torch.save({"format": 99, "fingerprint": {}}, tmp_path / "train" / "state.pt")
    train = ["train", "--data", shapes, "--architecture", "pico", "--input-size", "64x64"]
    message = fails(2, *train, "--epochs", 1, "--resume", "--out", tmp_path)
    assert "state.pt: format 99 is of a newer HEAT" in message


def test_other_formats_name_what_to_do() -> None:
    assert (
        wrong_format("a", 1, (2, 3), "measure") == "a: format '1', this HEAT reads 2 and 3: measure"
    )
    assert "reads 2: again" in wrong_format("a", True, [2], "again")
    assert "newer" not in wrong_format("a", "9", [2], "again")
