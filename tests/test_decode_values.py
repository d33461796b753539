"""The two operators that end a network: what they build, and what they state of themselves."""

import onnx
import pytest

from latency_tables.models import write
from latency_tables.terms import ProbeModel
from supernet.heatdetr.operators import OPERATORS
from supernet.heatdetr.operators.decode import Decode
from supernet.heatdetr.operators.entries import Entry

ENTRY = Entry("decode", 16, 0, 0, 4, 6, classes=3, anchors=2)


ENDS = [("decode", True), ("decode_voted", True), ("top_k", False)]


@pytest.mark.parametrize(("name", "nms"), ENDS)
def test_one_of_them_has_nms(name: str, nms: bool) -> None:
    decode = OPERATORS[name].build(ENTRY)
    assert isinstance(decode, Decode) and decode.nms is nms
    assert (decode.sizes, decode.num_classes) == ((16, 32), 3)
    assert (decode.image_size, decode.stride) == ((64, 96), 16)


@pytest.mark.parametrize("name", ["decode", "decode_voted", "top_k"])
def test_what_they_read_and_write(name: str) -> None:
    """Maps of a number of anchors in; detections out, whose number no shape can state."""
    operator = OPERATORS[name]
    assert operator.inputs(ENTRY) == ((2, 3, 24), (2, 4, 24))
    assert operator.outputs(ENTRY) == ((0, 4, 1), (0, 1, 1), (0, 1, 1))


@pytest.mark.parametrize(("name", "nms"), ENDS)
def test_alone_they_are_written_as_a_batch_of_one_is_deployed(name: str, nms: bool) -> None:
    """Profiling times this graph: padded outputs, for batches, have another one."""
    written = onnx.load_from_string(write(ProbeModel("alone", ENTRY.with_(op=name))).onnx)
    assert [node.op_type for node in written.graph.node].count("NonMaxSuppression") == nms
