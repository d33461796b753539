import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import heat
from deploy.edge.detect import Bundle
from deploy.edge.runtimes import open_session, openvino_core
from deploy.export import export_bundle
from deploy.form import Form, Format
from deploy.standalone import detect_script
from supernet.errors import BundleError, DataError, UserError
from supernet.heatdetr.detector import Detector
from supernet.letterbox import Image, letterbox
from tests.bundles import export

ROOT = Path(__file__).resolve().parents[1]
NO_TORCH = (
    "import sys\n"
    "class Refuse:\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    "        if name.split('.')[0] in {refused}: raise ImportError('refused ' + name)\n"
    "sys.meta_path.insert(0, Refuse())\n"
)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
@pytest.mark.parametrize("raw", [False, True])
def test_any_number_of_images_at_once(
    network: Detector, tmp_path: Path, images: list[Image], format: Format, raw: bool
) -> None:
    form = Form(format=format, dynamic_batch=True, raw=raw)
    done = export_bundle(
        network, tmp_path / "bundle", form, names=["a", "b", "c"], images=images,
        facts={"trained": False, "target_fps": None},
    )  # fmt: skip
    assert done.card["dynamic_batch"] and done.parity.matched > 0
    model = done.folder / done.card["model"]
    session = open_session(done.card["runtime"], model, 1)
    pixels = np.stack([letterbox(image, (96, 128))[0] for image in images])
    together = session.run({"image": pixels})
    for index in range(len(images)):
        alone = session.run({"image": pixels[index : index + 1]})
        for many, one in zip(together, alone, strict=True):
            np.testing.assert_allclose(many[index], one[0], rtol=1e-3, atol=1e-2)
    found = Bundle(done.folder).detect(images[0])
    with torch.no_grad():
        expected = network.deployed().detect(torch.from_numpy(pixels[:1]))[0]
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_bundle_round_trip(
    network: Detector, tmp_path: Path, images: list[Image], format: Format
) -> None:
    done = export(network, tmp_path / "bundle", images, format)
    assert done.parity.passed and done.parity.matched > 0
    assert done.parity.max_score <= 1e-3
    loaded = heat.load(tmp_path / "bundle")
    for wrong in (0, 99999):
        with pytest.raises(UserError, match=f"threads {wrong}: this machine gives"):
            heat.load(tmp_path / "bundle", threads=wrong)
    found = loaded.detect(images[0])
    assert found.boxes_xyxy_px.shape == (len(found.scores), 4)
    assert found.boxes_xyxy_px.max() <= 256
    card = json.loads((tmp_path / "bundle" / "card.json").read_text())
    for key in ("names", "input", "runtime_version", "threads", "precision", "measured_fps",
                "parity", "files", "architecture", "trained"):  # fmt: skip
        assert key in card
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_names_and_preprocessing_are_in_the_model_file(
    network: Detector, tmp_path: Path, images: list[Image]
) -> None:
    import onnx

    export(network, tmp_path / "bundle", images, "onnx")
    export(network, tmp_path / "vino", images, "openvino")
    model = onnx.load(tmp_path / "bundle" / "model.onnx")
    ir = openvino_core().read_model(tmp_path / "vino" / "model.xml")
    metadata = {item.key: item.value for item in model.metadata_props}
    for key in ("names", "input", "architecture"):
        assert str(ir.get_rt_info(["heat", key]).value) == metadata[key]
    assert json.loads(metadata["names"]) == ["a", "b", "c"]
    assert json.loads(metadata["input"])["height"] == 96


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_the_bundles_own_script_needs_neither_torch_nor_heat(
    network: Detector, tmp_path: Path, images: list[Image], format: Format
) -> None:
    export(network, tmp_path / "bundle", images, format)
    cv2.imwrite(str(tmp_path / "image.png"), images[0][:, :, ::-1])
    refused = ("torch", "heat", "supernet", "latency_tables", "deploy", "pandas", "onnx")
    program = NO_TORCH.replace("{refused}", repr(refused)) + (
        "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [
        sys.executable, "-c", program, str(tmp_path / "bundle" / "detect.py"),
        str(tmp_path / "image.png"), "--score", "0.1", "--all-boxes",
        "--save", str(tmp_path / "out"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])["detections"][0]
    ours = Bundle(tmp_path / "bundle").detect(images[0]).above(0.1)
    assert record["scores"] == [round(float(score), 4) for score in ours.scores]
    assert (tmp_path / "out" / "image.png").exists()
    wrong = subprocess.run(
        [*command[:4], str(tmp_path / "nothing.png")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr


def test_loading_a_bundle_never_imports_torch(
    network: Detector, tmp_path: Path, images: list[Image]
) -> None:
    export(network, tmp_path / "bundle", images, "onnx")
    refused = ("torch", "pandas", "onnx", "pycocotools", "safetensors", "matplotlib")
    program = NO_TORCH.replace("{refused}", repr(refused)) + (
        "import heat, numpy\n"
        f"found = heat.load({str(tmp_path / 'bundle')!r}).detect("
        "numpy.zeros((50, 60, 3), numpy.uint8))\n"
        "assert 'torch' not in sys.modules\n"
        "from heat.cli import main\n"
        f"sys.exit(main(['detect', {str(tmp_path / 'bundle')!r}, {str(tmp_path / 'x.png')!r}]))"
    )
    cv2.imwrite(str(tmp_path / "x.png"), images[0])
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_script_is_plain_python() -> None:
    text = detect_script()
    compile(text, "detect.py", "exec")
    imported = set(re.findall(r"^ *(?:from|import) (\.?\w*)", text, re.MULTILINE))
    assert imported - set(sys.stdlib_module_names) == {"numpy", "cv2"}


def test_damaged_bundles_are_named(network: Detector, tmp_path: Path, images: list[Image]) -> None:
    folder = tmp_path / "bundle"
    export(network, folder, images, "onnx")
    with pytest.raises(BundleError, match="no bundle"):
        Bundle(tmp_path)
    model = folder / "model.onnx"
    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BundleError, match="not the file the card describes"):
        Bundle(folder)
    card = json.loads((folder / "card.json").read_text())
    import hashlib

    card["files"]["model.onnx"] = hashlib.sha256(model.read_bytes()).hexdigest()
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(BundleError, match="cannot load"):
        Bundle(folder)
    model.unlink()
    with pytest.raises(BundleError, match="cannot read"):
        Bundle(folder)
    (folder / "card.json").write_text("{")
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle(folder)


def test_an_old_bundle_survives_a_failed_export(
    network: Detector, tmp_path: Path, images: list[Image]
) -> None:
    export(network, tmp_path / "bundle", images, "onnx")
    before = (tmp_path / "bundle" / "card.json").read_bytes()
    with pytest.raises(UserError):
        export(network, tmp_path / "bundle", [], "onnx")
    assert (tmp_path / "bundle" / "card.json").read_bytes() == before


def test_images_of_other_depth_are_refused(
    network: Detector, tmp_path: Path, images: list[Image]
) -> None:
    export(network, tmp_path / "bundle", images, "onnx")
    loaded = Bundle(tmp_path / "bundle")
    for wrong in (images[0][:, :, 0], images[0].astype(np.float32), images[0][:, :, :2]):
        with pytest.raises(DataError, match="RGB uint8 image"):
            loaded.detect(wrong)


def test_unknown_runtime_and_format(network: Detector, tmp_path: Path, images: list[Image]) -> None:
    with pytest.raises(UserError, match="unknown runtime"):
        open_session("toaster", b"", 1)
    with pytest.raises(BundleError, match="cannot load"):
        open_session("onnxruntime", b"junk", 1)
    with pytest.raises(UserError, match="--format"):
        export(network, tmp_path / "bundle", images, "tflite")  # type: ignore[arg-type]
