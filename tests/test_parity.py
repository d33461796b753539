"""An artefact is compared with torch: what agrees, what does not, and what NMS cannot give."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy.edge.runtimes import open_session
from deploy.form import Form
from deploy.gate import check_parity
from deploy.nms_check import violations
from deploy.parity import compare, match_detections
from heat.stages.export import Wish
from supernet.boxes import Detections
from supernet.errors import PromiseError, UserError
from supernet.heatdetr.detector import Detector
from supernet.letterbox import Image, letterbox
from tests.bundles import export


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
    """A double of a runtime whose scores are off by less than the tolerance."""

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


def test_parity_is_a_value(network: Detector, images: list[Image]) -> None:
    session = open_session("onnxruntime", network.to_onnx().SerializeToString(), 1)
    raw = open_session("onnxruntime", network.to_onnx(raw=True).SerializeToString(), 1)
    parity = compare(network, session.run, raw, images)
    assert parity.passed
    assert not replace(parity, unmatched=1).passed
    assert not replace(parity, max_score=0.01).passed
    assert not replace(parity, raw_max_box_px=1.0).passed


class Overflowing:
    """A double of a graph in half precision whose maps overflow where nothing is detected."""

    def __init__(self, session: Any, value: float) -> None:
        self._session, self._value = session, value

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        outputs = [output.copy() for output in self._session.run(feeds)]
        outputs[0].reshape(-1)[:1] = self._value
        return outputs

    def timed(self, feeds: Mapping[str, Any]) -> float:
        return 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("precision", ["f32", "f16", "int8"])
def test_what_is_not_finite_never_agrees(
    network: Detector, images: list[Image], value: float, precision: str
) -> None:
    with torch.no_grad():  # as an export without training: nothing reaches a score of 0.3
        network.units["head"].cls.bias.fill_(-8.0)  # type: ignore[operator, union-attr]
    find = open_session("onnxruntime", network.to_onnx().SerializeToString(), 1)
    raw = open_session("onnxruntime", network.to_onnx(raw=True).SerializeToString(), 1)
    exact = compare(network, find.run, raw, images, precision)
    assert exact.passed and exact.matched == 0 and exact.not_finite == 0
    parity = compare(network, find.run, Overflowing(raw, value), images, precision)
    assert not parity.passed and parity.not_finite == len(images)
    with pytest.raises(PromiseError, match="NaN or infinity on 4 of 4 images"):
        check_parity(network, Form(), find.run, Overflowing(raw, value), images, None)
    with pytest.raises(UserError, match="--max-ap-drop nan"):
        Wish(max_ap_drop=float("nan"))
