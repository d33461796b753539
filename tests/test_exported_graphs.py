"""Graphs as runtimes take them: opsets, suppression without NMS, signals."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.edge.runtimes import open_session
from supernet.errors import UserError
from supernet.graph.style import GraphStyle
from supernet.graph.writer import GraphWriter
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.operators.suppress import ROUNDS, nms, survivors
from supernet.letterbox import Image, letterbox

ROOT = Path(__file__).resolve().parents[1]


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
