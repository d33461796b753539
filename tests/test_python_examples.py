"""The scripts and notebooks of `examples/` run as they are, and detections convert."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import heat
from deploy.edge.found import Found
from heat.commands.outcomes import Evaluation, Export, Training
from heat.workspace import Workspace
from supernet.errors import DeviceError, PromiseError, UserError
from tests.command_line import run

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
MOST_NOTEBOOK_BYTES = 100_000
FOUND = Found(
    np.array([[1, 2, 11, 22], [0, 0, 4, 4]], np.float32),
    np.array([0.9, 0.5], np.float32),
    np.array([1, 0]),
    latency_ms=1.0,
    names=("cat", "dog"),
)


def example(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> dict[str, Any]:
    """Run a script in this process."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    return runpy.run_path(str(EXAMPLES / name))


def test_the_scripts_run(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A network by an estimate, exported, and detecting."""
    out = tmp_path / "run"
    small = ["--space", "micro", "--input-size", "96x128", "--out", out]
    far = ["--device", "cpu-i7", "--target-fps", 30, "--estimate"]
    found = example(monkeypatch, "find_network.py", *far, *small)["found"]
    assert found.met and found.measured_fps is None and (out / "thinning.svg").exists()
    assert "<table>" in found._repr_html_() and "target_fps=30" in repr(found)
    code, _, errors = run("export", "--threads", 1, "--out", out)
    assert code == 0, errors
    image, results = next((shapes / "val").iterdir()), tmp_path / "results.json"
    example(
        monkeypatch, "detect_images.py", out / "bundle-onnx", image, "--score", 0,
        "--results", results,
    )  # fmt: skip
    objects = json.loads(results.read_text())
    assert isinstance(objects, list)  # untrained, it may find nothing
    assert f"{len(objects)} objects are in" in capsys.readouterr().out


@pytest.mark.slow
def test_the_example_of_own_data_runs(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--target-fps", 2, "--minutes", 0.05, "--threads", 1, "--out", tmp_path / "run"]
    try:
        built = example(monkeypatch, "own_data.py", "--data", shapes, *asked)["built"]
    except PromiseError as error:
        if " FPS" not in str(error):  # a promise of something else than speed
            raise
        pytest.skip(f"this machine is too busy to keep a frame rate: {error}")
    assert built.bundle.is_dir() and built["trained"]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
@pytest.mark.slow
def test_the_notebooks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell by cell, in this process."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, source in enumerate(code_cells(path)):
        try:
            exec(compile(source, f"{path.name}, cell {number}", "exec"), names)
        except PromiseError as error:
            if path.stem == "fleet" or " FPS" not in str(error):  # there nothing is measured
                raise
            pytest.skip(f"this machine is too busy to keep a frame rate: {error}")


def code_cells(path: Path) -> list[str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_small_and_their_code_is_python(path: Path) -> None:
    assert path.stat().st_size < MOST_NOTEBOOK_BYTES
    for source in code_cells(path):
        compile(source, path.name, "exec")


def test_detections_convert() -> None:
    table = FOUND.to_pandas()
    assert list(table["name"]) == ["dog", "cat"] and table["x1_px"][0] == 11
    assert FOUND.to_coco(7)[0] == {
        "image_id": 7,
        "category_id": 2,
        "bbox": [1.0, 2.0, 10.0, 20.0],
        "score": pytest.approx(0.9),
    }
    assert [each["category_id"] for each in FOUND.to_coco(7, (17, 18))] == [18, 17]
    json.dumps(FOUND.to_coco(7, np.array([17, 18])))


def test_detections_convert_to_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match="pip install supervision"):
        FOUND.to_supervision()
    monkeypatch.undo()
    pytest.importorskip("supervision", reason="supervision is not installed")
    found = FOUND.to_supervision()
    assert found.xyxy.shape == (2, 4) and list(found.data["class_name"]) == ["dog", "cat"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search": "gredy"}, r"search='gredy' \(did you mean greedy\?\)"),
        ({"target_fps": "24"}, "target_fps='24': float or None is needed"),
        ({"target_fps": True}, "target_fps=True"),
        ({"device": "cpx", "target_fps": 1}, "unknown device 'cpx'"),
        ({"diff": ("a.json",)}, "diff="),
        ({"trials": 1.5, "target_fps": 1}, "trials=1.5: int or None is needed"),
    ],
)
def test_options_are_checked_as_on_the_command_line(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        heat.thin(**options, out=tmp_path)


def test_a_text_is_taken_as_a_path_and_errors_are_the_commands(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is empty"):
        heat.report(out=str(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match=r"'cpu-17' \(did you mean cpu-i7\?\)"):
        heat.profile(device="cpu-17", estimate=True, out=tmp_path)
    with pytest.raises(
        UserError, match=r"traget_fps \(did you mean target_fps\?\): no option of thin"
    ):
        heat.thin(traget_fps=3)  # type: ignore[call-arg]


def test_what_was_called_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report named the arguments of the script as the last command."""
    monkeypatch.setattr(sys, "argv", ["script.py", "--my-own", "7"])
    heat.profile(device="cpu-i7", estimate=True, space="micro", out=tmp_path)
    (command,) = cast(list[str], Workspace(tmp_path).about()["command"])
    options = f"device='cpu-i7', estimate=True, space='micro', out='{tmp_path}'"
    assert command == f"heat.profile({options})"


def test_outcomes_show_themselves(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    scored = Evaluation(
        {"ap": 0.5, "ap50": None, "ap_by_class": {"<a$>": 0.5, "b": None}}, workspace
    )
    assert scored.ap == 0.5 and scored.ap50 is None and dict(scored)["ap"] == 0.5
    assert "<svg" in scored.plot()._repr_svg_()  # type: ignore[attr-defined]
    assert "<td style" in scored._repr_html_()
    built = Export({"target_fps": 10, "measured_fps": None, "predicted_fps": 12.0}, workspace)
    assert len(built.plot().axes[0].patches) == 2
    with pytest.raises(UserError, match="has no bundle"):
        _ = built.bundle
    assert "<b>" not in Training({"checkpoint": "<b>"}, workspace)._repr_html_()
