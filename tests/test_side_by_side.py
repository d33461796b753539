"""Models timed in turns, each in a process of its own."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from deploy.edge.card import waiting_of
from deploy.edge.cpu import core_count
from deploy.edge.runtimes import open_session
from deploy.feeds import closed_shape, inputs_of
from deploy.side_by_side import Entrant, race, ratio, throughput
from heat.stages.bench import names_apart
from latency_tables.meter import FRESH_COMMAND
from latency_tables.models import randomise
from supernet.errors import UserError
from supernet.heatdetr.architecture import Architecture
from supernet.heatdetr.detector import Detector
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


def test_a_bundle_waits_as_its_card_says(models: dict[str, Path]) -> None:
    assert waiting_of({"spinning": "always", "pinning": True}) == {
        "spinning": True,
        "pinning": True,
    }  # type: ignore[typeddict-item]
    assert waiting_of({"spinning": "brief", "pinning": False}) == {}  # type: ignore[typeddict-item]
    entrant = Entrant(
        name="a", model=models["narrow"], runtime="openvino", waiting={"spinning": True}
    )
    with pytest.raises(UserError, match="spinning cannot be chosen for openvino"):
        race([entrant], rounds=1)


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


def test_a_file_runs_in_as_many_threads_as_the_bundle_beside_it(
    models: dict[str, Path], bundle: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(bundle, copied)
    card = json.loads((copied / "card.json").read_text())
    (copied / "card.json").write_text(json.dumps(card | {"threads": 2}))
    code, found, errors = run("bench", models["narrow"], copied, "--rounds", 1)
    assert code == 0, errors
    assert [row["threads"] for row in found["models"]] == [min(2, core_count())] * 2


def write_model(path: Path, sides: list[object], kind: int = TensorProto.FLOAT) -> Path:
    """Write a model that casts its input to float."""
    shape = helper.make_tensor_value_info("x", kind, sides)
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, sides)
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    graph = helper.make_graph([node], "g", [shape], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (TensorProto.FLOAT16, np.float16), (TensorProto.DOUBLE, np.float64),
        (TensorProto.INT32, np.int32), (TensorProto.INT64, np.int64), (TensorProto.BOOL, np.bool_),
        (TensorProto.UINT8, np.uint8), (TensorProto.INT8, np.int8), (TensorProto.FLOAT, np.float32),
    ],
)  # fmt: skip
def test_inputs_are_fed_in_their_own_type(
    tmp_path: Path, runtime: str, kind: int, dtype: type
) -> None:
    model = write_model(tmp_path / "model.onnx", [1, 3, 8, 8], kind)
    session = open_session(runtime, model, 1)
    feeds = inputs_of(session)
    (array,) = feeds.values()
    assert array.dtype == dtype and array.shape == (1, 3, 8, 8)
    assert session.run(feeds)[0].shape == (1, 3, 8, 8)


def test_open_sides_are_refused_or_given() -> None:
    assert closed_shape("x", [None, 3, 8, 8], None) == (1, 3, 8, 8)
    assert closed_shape("x", [1, 3, None, None], (64, 96)) == (1, 3, 64, 96)
    assert closed_shape("x", [None, None, None, 3], (64, 96)) == (1, 64, 96, 3)
    assert closed_shape("x", [None, None, None, None], (64, 96)) == (1, 3, 64, 96)
    for sides in ([1, 3, None, None], [None] * 4, [1, None, None, 3]):
        with pytest.raises(UserError, match="--input-size"):
            closed_shape("x", sides, None)
    with pytest.raises(UserError, match="dynamic dimensions that are not an image's"):
        closed_shape("ids", [1, None], (64, 96))
    with pytest.raises(UserError, match="a dimension of 0"):
        closed_shape("x", [0, 3, 8, 8], None)
    with pytest.raises(UserError, match="no known rank"):
        closed_shape("x", None, (64, 96))


def test_a_model_of_open_size_is_never_timed_at_one_pixel(tmp_path: Path) -> None:
    path = write_model(tmp_path / "open.onnx", ["batch", 3, "height", "width"])
    line = fails(2, "bench", path, "--rounds", 1)
    assert "leaves height and width open" in line and "--input-size" in line
    code, found, errors = run("bench", path, "--rounds", 1, "--input-size", "64x96")
    assert code == 0, errors
    assert found["models"][0]["inputs"] == "x float32 1x3x64x96"
    assert "--rounds 0: at least 1" in fails(2, "bench", path, "--rounds", 0)
    assert "--input-size 64" in fails(2, "bench", path, "--input-size", 64)
    text = write_model(tmp_path / "text.onnx", [1, 3], TensorProto.STRING)
    assert "cannot be" in fails(2, "bench", text, "--rounds", 1)


def test_throughput_is_refused_for_an_engine_and_measured_at_a_given_size(tmp_path: Path) -> None:
    engine = tmp_path / "bundle-tensorrt"
    engine.mkdir()
    card = {
        "format": 1, "model": "model.engine", "runtime": "tensorrt", "precision": "f16",
        "threads": 1, "names": ["a"], "input": {"height": 64, "width": 96},
        "files": {"model.engine": hashlib.sha256(b"an engine").hexdigest()},
    }  # fmt: skip
    (engine / "card.json").write_text(json.dumps(card))
    (engine / "model.engine").write_bytes(b"an engine")
    assert "leave it for TensorRT" in fails(2, "bench", engine, "--throughput")
    line = fails(2, "bench", engine, "--rounds", 1)
    assert "bundle-tensorrt: " in line and "cannot be read" in line
    alone = fails(2, "bench", engine / "model.engine", "--throughput")
    assert "neither a bundle nor" in alone
    path = write_model(tmp_path / "open.onnx", ["batch", 3, "height", "width"])
    asked = ["bench", path, "--rounds", 1, "--throughput"]
    assert "--input-size" in fails(2, *asked)
    code, found, errors = run(*asked, "--input-size", "64x96")
    assert code == 0 and found["models"][0]["throughput_fps"] > 0, errors


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_precision_is_what_is_executed(models: dict[str, Path], runtime: str) -> None:
    """The row called an f32 model int8."""
    asked = ["bench", models["narrow"], "--runtime", runtime, "--rounds", 1]
    assert f"{runtime} executes f32, not int8" in fails(2, *asked, "--precision", "int8")
    code, found, errors = run(*asked)
    assert code == 0 and found["models"][0]["precision"] == "f32", errors


def test_an_input_without_a_number_of_sides_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime calls it a scalar: it was timed with one number."""
    model = onnx.load(write_model(tmp_path / "open.onnx", [1, 3]))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "open.onnx")
    assert "no known rank" in fails(2, "bench", tmp_path / "open.onnx", "--rounds", 1)
    scalar = write_model(tmp_path / "scalar.onnx", [])
    assert run("bench", scalar, "--rounds", 1)[0] == 0


def test_names_of_files_are_taken_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "[1].ONNX").write_bytes(write_model(tmp_path / "a.onnx", [1, 3]).read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        code, found, errors = run("bench", "[1].ONNX", "a.onnx", "a.onnx", "--rounds", 1)
    assert code == 0, errors
    assert [row["model"] for row in found["models"]] == ["[1]", "a (1)", "a (2)"]


def test_models_of_the_same_name_are_told_apart() -> None:
    def names(*paths: str) -> list[str]:
        return names_apart([Path(path) for path in paths])

    assert names("a/conv.onnx", "b/conv.onnx", "c/d.xml") == ["a/conv.onnx", "b/conv.onnx", "d"]
    assert names("a/conv.onnx", "a/conv.xml") == ["conv.onnx", "conv.xml"]
    assert names("r/a/x.onnx", "s/a/x.onnx") == ["r/a/x.onnx", "s/a/x.onnx"]


def test_a_file_of_the_users_is_not_run(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m deploy...` looks in the working directory first."""
    (tmp_path / "deploy.py").write_text("raise SystemExit('the user's file ran')\n")
    monkeypatch.chdir(tmp_path)
    laps = race([Entrant(name="narrow", model=models["narrow"], runtime="onnxruntime")], rounds=1)
    assert laps[0].runs
    done = subprocess.run([*FRESH_COMMAND, "peak"], capture_output=True, text=True, check=False)
    assert "not enough values to unpack" in done.stderr
