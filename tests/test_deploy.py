import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import heat
from deploy.edge.detect import Bundle
from deploy.edge.drawing import draw
from deploy.edge.runtimes import open_session, openvino_core
from deploy.edge.sources import image_paths
from deploy.edge.work import DetectOptions, detect_files
from deploy.export import Exported, export_bundle
from deploy.form import Form, Format
from deploy.nms_check import violations
from deploy.parity import compare, match_detections
from deploy.standalone import detect_script
from supernet.boxes import Detections
from supernet.data.shapes import draw as draw_shapes
from supernet.errors import BundleError, DataError, PromiseError, UserError
from supernet.graph.style import GraphStyle
from supernet.graph.writer import GraphWriter
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.operators.suppress import ROUNDS, nms, survivors
from supernet.letterbox import Image, letterbox, read_image

ROOT = Path(__file__).resolve().parents[1]
NO_TORCH = (
    "import sys\n"
    "class Refuse:\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    "        if name.split('.')[0] in {refused}: raise ImportError('refused ' + name)\n"
    "sys.meta_path.insert(0, Refuse())\n"
)


@pytest.fixture(scope="module")
def images() -> list[Image]:
    rng = np.random.default_rng(3)
    return [draw_shapes(rng).pixels for _ in range(4)]


def export(network: Detector, folder: Path, images: list[Image], format: Format) -> Exported:
    return export_bundle(
        network, folder, Form(format=format), names=["a", "b", "c"], images=images,
        facts={"trained": False, "target_fps": None},
    )  # fmt: skip


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


def test_older_tools_get_an_older_opset(network: Detector, images: list[Image]) -> None:
    pixels = letterbox(images[0], (96, 128))[0][None]
    usual = open_session("onnxruntime", network.to_onnx(raw=True).SerializeToString(), 1)
    for padded in (False, True):
        old = network.to_onnx(style=GraphStyle(opset=17), padded=padded)
        assert old.opset_import[0].version == 17 and old.ir_version == 8
        assert not {"Gelu"} & {node.op_type for node in old.graph.node}
    session = open_session(
        "onnxruntime", network.to_onnx(raw=True, style=GraphStyle(opset=17)).SerializeToString(), 1
    )
    for ours, theirs in zip(
        session.run({"image": pixels}), usual.run({"image": pixels}), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    with pytest.raises(UserError, match="--opset 16: 17 to 22 for f32"):
        network.to_onnx(style=GraphStyle(opset=16))


def test_suppression_without_nms_settles_chains(network: Detector) -> None:
    """Boxes in a row, each over its neighbours: every second one survives, as with NMS."""
    count = ROUNDS + 1
    x0 = torch.arange(count) * 2.0
    boxes = torch.stack([x0, torch.zeros(count), x0 + 10, torch.full((count,), 10.0)], 1)
    graph = GraphWriter()
    best = graph.input("best", (1, count))
    corners = [graph.input(f"corner{i}", (1, count)) for i in range(4)]
    alive = survivors(graph, best, corners, iou=0.6, threshold=0.05)
    model = graph.model([("alive", alive, "float32")]).SerializeToString()
    scores = np.linspace(0.9, 0.1, count, dtype=np.float32)[None]
    feeds = {f"corner{i}": boxes[:, i].numpy()[None] for i in range(4)} | {"best": scores}
    found = open_session("onnxruntime", model, 1).run(feeds)[0][0]
    kept = nms(boxes, 0.6, count)
    assert np.flatnonzero(found).tolist() == kept.tolist()


def test_a_signal_after_openvino_is_survived(network: Detector, tmp_path: Path) -> None:
    """OpenVINO takes back the signal stack it lent a thread when its last user goes in another."""
    model = tmp_path / "model.onnx"
    model.write_bytes(network.to_onnx().SerializeToString())
    program = (
        "import os, signal, sys, threading\n"
        "from pathlib import Path\n"
        "from deploy.edge.runtimes import OpenVinoSession\n"
        "held = [OpenVinoSession(Path(sys.argv[1]), 1)]\n"
        "thread = threading.Thread(target=held.clear)\n"
        "thread.start()\n"
        "thread.join()\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('survived'))\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(model)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr


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


def test_a_graph_that_disagrees_is_not_written(
    network: Detector, tmp_path: Path, images: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Detector.to_onnx

    def other(self: Detector, *a: Any, **k: Any) -> Any:
        changed = Detector(self.architecture).eval()
        changed.load_state_dict(self.state_dict())
        with torch.no_grad():
            changed.units["head"].cls.weight += 0.01  # type: ignore[operator, union-attr]
        return real(changed, *a, **k)

    monkeypatch.setattr(Detector, "to_onnx", other)
    with pytest.raises(PromiseError, match="disagrees with torch"):
        export(network, tmp_path / "bundle", images, "onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_old_bundle_survives_a_failed_export(
    network: Detector, tmp_path: Path, images: list[Image]
) -> None:
    export(network, tmp_path / "bundle", images, "onnx")
    before = (tmp_path / "bundle" / "card.json").read_bytes()
    with pytest.raises(UserError):
        export(network, tmp_path / "bundle", [], "onnx")
    assert (tmp_path / "bundle" / "card.json").read_bytes() == before


def test_matching_looks_both_ways() -> None:
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    one = (box, torch.tensor([0.9]), torch.tensor([0]))
    none = (box[:0], torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert match_detections(Detections(*one), one)[:2] == (1, 0)
    assert match_detections(Detections(*one), none)[:2] == (0, 1)
    assert match_detections(Detections(*none), one)[:2] == (0, 1)
    other_label = (box, torch.tensor([0.9]), torch.tensor([1]))
    assert match_detections(Detections(*one), other_label)[1] == 2
    edge = (torch.tensor([[448.0, 3.0, 448.0, 9.0]]), *one[1:])  # clipped to nothing
    assert match_detections(Detections(*edge), edge)[:2] == (1, 0)


class Trembling:
    """Stands for a runtime whose scores are off by less than the tolerance."""

    def __init__(self, network: Detector, *, raw: bool) -> None:
        self._network, self._raw = network.deployed(), raw

    @torch.no_grad()
    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        logits, deltas = self._network(torch.from_numpy(feeds["image"]))
        scores = logits[0].sigmoid().flatten(2)
        noise = torch.rand(scores.shape, generator=torch.Generator().manual_seed(0))
        scores = scores + 5e-4 * noise
        if self._raw:
            return [scores.numpy(), deltas[0].numpy()]
        height, width = self._network.decode.image_size
        limit = torch.tensor([width, height] * 2, dtype=torch.float32)
        boxes = torch.minimum(self._network.decode.boxes(deltas).clamp_min(0), limit)
        found = self._network.decode.select(scores, boxes[0])
        return [found.boxes_xyxy.numpy(), found.scores.numpy(), found.labels.numpy()]


def test_near_ties_are_no_disagreement(network: Detector, images: list[Image]) -> None:
    """An untrained network has many equal scores; NMS then keeps one of two neighbours."""
    with torch.no_grad():
        for name, parameter in network.units["head"].named_parameters():
            parameter.fill_(1.0 if name.endswith("bias") else 0.0)
    ours, raw = Trembling(network, raw=False), Trembling(network, raw=True)
    pixels = letterbox(images[0], network.architecture.input_size)[0][None]
    with torch.no_grad():
        reference = network.decode(*network.deployed()(torch.from_numpy(pixels)))[0]
    boxes, scores, labels = map(torch.from_numpy, ours.run({"image": pixels}))
    assert match_detections(reference, (boxes, scores, labels))[1] > 0
    assert compare(network, ours.run, raw, images).passed  # type: ignore[arg-type]


@pytest.mark.parametrize("voting", [False, True])
def test_what_nms_cannot_give_is_counted(network: Detector, voting: bool) -> None:
    """Nearly equal scores leave a choice; a lost, moved, repeated or renamed box is none."""
    decode = network.decode
    decode.voting = voting
    generator = torch.Generator().manual_seed(0)
    anchors, classes, positions = len(decode.sizes), network.architecture.num_classes, 40
    scores = 0.8 + 1e-4 * torch.rand((anchors, classes, positions), generator=generator)
    centres = 128 * torch.rand((anchors * positions, 2), generator=generator)
    sides = 10 + 40 * torch.rand((anchors * positions, 2), generator=generator)
    boxes = torch.cat([centres - sides / 2, centres + sides / 2], 1).clamp(0, 128)
    checked = partial(
        violations,
        decode,
        scores,
        boxes,
        least_score=0.3,
        score_tolerance=1e-3,
        box_tolerance_px=0.1,
    )
    noise = 5e-4 * torch.rand(scores.shape, generator=generator)
    ours, other = decode.select(scores, boxes), decode.select(scores + noise, boxes)
    theirs = (other.boxes_xyxy, other.scores, other.labels)
    assert match_detections(ours, theirs)[1] > 0
    assert checked((ours.boxes_xyxy, ours.scores, ours.labels)) == checked(theirs) == 0
    assert checked(tuple(values[:50] for values in theirs)) > 0
    assert checked((theirs[0] + torch.tensor([5.0, 0, 0, 0]), *theirs[1:])) > 0
    assert checked((theirs[0], theirs[1] - 0.01, theirs[2])) > 0
    assert checked(tuple(torch.cat([values, values[:1]]) for values in theirs)) > 0
    none = tuple(values[:0] for values in theirs)
    assert checked(none) > 0


def test_parity_on_sizes_of_other_shape(network: Detector, images: list[Image]) -> None:
    tall = [np.ascontiguousarray(np.rot90(image)) for image in images[:2]]
    session = open_session("onnxruntime", network.to_onnx().SerializeToString(), 1)
    raw = open_session("onnxruntime", network.to_onnx(raw=True).SerializeToString(), 1)
    assert compare(network, session.run, raw, tall).passed


def test_files_that_are_no_image_do_not_stop_the_rest(
    network: Detector, tmp_path: Path, images: list[Image]
) -> None:
    export(network, tmp_path / "bundle", images, "onnx")
    folder = tmp_path / "pictures"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), images[0])
    (folder / "b.png").write_bytes(b"no image")
    cv2.imwrite(str(folder / "c.png"), images[1])
    (folder / "notes.txt").write_text("not looked at")
    loaded = Bundle(tmp_path / "bundle")
    records, broken = detect_files(
        loaded, image_paths(folder), DetectOptions(save=tmp_path / "out")
    )
    assert [Path(record["file"]).name for record in records] == ["a.png", "c.png"]
    assert broken == [str(folder / "b.png")]
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == records
    with pytest.raises(DataError, match="no images in"):
        image_paths(tmp_path / "out" / "..")
    with pytest.raises(DataError, match="no image or folder"):
        image_paths(tmp_path / "nowhere")


def test_images_of_other_depth_are_refused(
    network: Detector, tmp_path: Path, images: list[Image]
) -> None:
    export(network, tmp_path / "bundle", images, "onnx")
    loaded = Bundle(tmp_path / "bundle")
    for wrong in (images[0][:, :, 0], images[0].astype(np.float32), images[0][:, :, :2]):
        with pytest.raises(DataError, match="RGB uint8 image"):
            loaded.detect(wrong)


def test_drawn_boxes_stay_in_the_picture(
    network: Detector, tmp_path: Path, images: list[Image]
) -> None:
    export(network, tmp_path / "bundle", images, "onnx")
    found = Bundle(tmp_path / "bundle").detect(images[0])
    before = images[0].copy()
    picture = draw(images[0], found, ["a", "b", "c"])
    assert picture.shape == images[0].shape and (picture != before).any()
    assert (images[0] == before).all()


def test_unknown_runtime_and_format(network: Detector, tmp_path: Path, images: list[Image]) -> None:
    with pytest.raises(UserError, match="unknown runtime"):
        open_session("toaster", b"", 1)
    with pytest.raises(BundleError, match="cannot load"):
        open_session("onnxruntime", b"junk", 1)
    with pytest.raises(UserError, match="--format"):
        export(network, tmp_path / "bundle", images, "tflite")  # type: ignore[arg-type]


def test_lettered_picture_is_read_back(tmp_path: Path, images: list[Image]) -> None:
    path = tmp_path / "größe 1.png"
    ok, data = cv2.imencode(".png", images[0][:, :, ::-1])
    assert ok
    path.write_bytes(data.tobytes())
    image = read_image(path)
    assert image is not None and (image == images[0]).all()


def test_parity_is_a_value(network: Detector, images: list[Image]) -> None:
    session = open_session("onnxruntime", network.to_onnx().SerializeToString(), 1)
    raw = open_session("onnxruntime", network.to_onnx(raw=True).SerializeToString(), 1)
    parity = compare(network, session.run, raw, images)
    assert parity.passed
    assert not replace(parity, unmatched=1).passed
    assert not replace(parity, max_score=0.01).passed
    assert not replace(parity, raw_max_box_px=1.0).passed
