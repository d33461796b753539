"""The examples in C++ and JavaScript: the same boxes as the bundle's own detect.py.

Each is built and run where its tools are: CMake, a compiler and OpenVINO's wheel; Node and
onnxruntime-node (`npm install --prefix examples/javascript`).
"""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest

from deploy.export import export_bundle
from deploy.form import Form
from supernet.data.shapes import draw
from supernet.heatdetr.detector import Detector
from supernet.letterbox import Image

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NAMES = ("cat", 'do"g', "öwl")
SIZES = (None, (250, 611), (60, 81), (301, 200))
"""As the network's input is; wider, smaller, and higher than it."""
TOLERANCE_PX = 0.25
"""OpenCV rounds averages of pixels in another way; boxes follow by hundredths of a pixel."""


@pytest.fixture(scope="module")
def cpp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the C++ example and return the program."""
    tools = [shutil.which(name) for name in ("cmake", "c++")]
    if None in tools:
        pytest.skip("no cmake or no C++ compiler")
    build = tmp_path_factory.mktemp("cpp")
    cmake = Path(str(find_spec("openvino") and cmake_path()))
    if not (cmake / "OpenVINOConfig.cmake").is_file():
        pytest.skip("the openvino package has no CMake files")
    for command in (
        ["cmake", "-S", EXAMPLES / "cpp", "-B", build, f"-DOpenVINO_DIR={cmake}"],
        ["cmake", "--build", build],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "detect"


@cache
def cmake_path() -> str:
    from openvino.utils import get_cmake_path

    return str(get_cmake_path())


@pytest.fixture(scope="module")
def javascript() -> Path:
    """Return the JavaScript example, where its runtime is installed."""
    if shutil.which("node") is None:
        pytest.skip("no node")
    if not (EXAMPLES / "javascript/node_modules/onnxruntime-node").is_dir():
        pytest.skip("npm install --prefix examples/javascript")
    return EXAMPLES / "javascript/detect.mjs"


def make_bundle(network: Detector, folder: Path, *, dynamic_batch: bool = False) -> Path:
    images: list[Image] = [draw(np.random.default_rng(seed)).pixels for seed in range(2)]
    form = Form(format="onnx", precision="f32", threads=1, dynamic_batch=dynamic_batch)
    export_bundle(network, folder, form, names=NAMES, images=images, facts={"trained": False})
    card = json.loads((folder / "card.json").read_text())
    card["thresholds"] = {"cat": None, 'do"g': 0.31, "öwl": 0.3}
    (folder / "card.json").write_text(json.dumps(card))
    return folder


def check(program: list[str], bundle: Path, folder: Path) -> None:
    """Compare a program with detect.py on images of several sizes."""
    pixels = draw(np.random.default_rng(5)).pixels
    paths = [folder / f"{index}.ppm" for index in range(len(SIZES))]
    for size, path in zip(SIZES, paths, strict=True):
        image = pixels if size is None else cv2.resize(pixels, size[::-1])
        assert cv2.imwrite(str(path), image[:, :, ::-1])
    script = [sys.executable, str(bundle / "detect.py"), *map(str, paths)]
    detections = json.loads(output(script).splitlines()[-1])["detections"]
    for path, ours in zip(paths, detections, strict=True):
        theirs = json.loads(output([*program, str(bundle), str(path)]))
        assert theirs["names"] == ours["names"] and ours["names"]
        np.testing.assert_allclose(theirs["scores"], ours["scores"], atol=5e-3)
        np.testing.assert_allclose(
            theirs["boxes_xyxy_px"], ours["boxes_xyxy_px"], atol=TOLERANCE_PX
        )


def output(command: list[str]) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("language", "batch"), [("cpp", False), ("javascript", True)])
def test_the_same_boxes(
    language: str, batch: bool, network: Detector, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Of a graph for one image, and of padded outputs."""
    program = request.getfixturevalue(language)
    command = [str(program)] if language == "cpp" else ["node", str(program)]
    check(command, make_bundle(network, tmp_path / "bundle", dynamic_batch=batch), tmp_path)


@pytest.mark.parametrize("language", ["cpp", "javascript"])
def test_bad_input_is_one_line(
    language: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    program = request.getfixturevalue(language)
    command = [str(program)] if language == "cpp" else ["node", str(program)]
    done = subprocess.run(
        [*command, str(tmp_path / "none"), "image.ppm"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
