"""A local operator that HEAT does not have: one file, and one row of the operator table.

Run as a program it goes the whole way: priced, counted, thinned, inherited, exported.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supernet.graph.nodes import Value
from supernet.graph.writer import GraphWriter
from supernet.heatdetr.operators.base import Operator, same_shape
from supernet.heatdetr.operators.convbn import ConvBN, conv_macs, conv_params
from supernet.heatdetr.operators.cutting import Streams, copy_conv
from supernet.heatdetr.operators.entries import Entry


class Point(nn.Module):
    """`x + ReLU(ConvBN1x1(x))`."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.conv = ConvBN(d, d)

    def forward(self, x_BDHW: Tensor) -> Tensor:
        return x_BDHW + F.relu(self.conv(x_BDHW))

    def emit(self, graph: GraphWriter, x: Value) -> Value:
        return graph.add(x, graph.unary("Relu", graph.conv(x, self.conv)))


def _inherit(old: Point, new: Point, streams: Streams) -> None:
    copy_conv(old.conv, new.conv, streams.own, streams.own)


POINT = Operator(
    build=lambda entry: Point(entry.d_in),
    macs=lambda entry: conv_macs(entry.d_in, entry.d_out, 1, entry.h * entry.w),
    params=lambda entry: conv_params(entry.d_in, entry.d_out, 1),
    inputs=same_shape,
    outputs=same_shape,
    keeps_map=True,
    letter="P",
    reduction="PR",
    inherit=_inherit,
    scales=lambda unit: [unit.conv.bn.weight.abs()],
)


def main() -> None:
    """Add the row, as an edit of the table would, then use HEAT."""
    from supernet.heatdetr.operators import OPERATORS

    OPERATORS["point"] = POINT  # type: ignore[index]

    from deploy.edge.runtimes import open_session
    from heat.thinning.greedy import thin_step
    from heat.thinning.moves import State, ThinningRules, every_move, removed_mass
    from latency_tables.models import randomise, write
    from latency_tables.plan import space_entries
    from latency_tables.terms import terms
    from supernet.counting import count_macs, count_params
    from supernet.heatdetr.architecture import Architecture
    from supernet.heatdetr.inherit import inherit
    from supernet.heatdetr.supernet import CANDIDATES, SearchSpace, Supernet

    assert CANDIDATES == ("repcnn", "wmsa", "swmsa", "point", "identity")
    template = Architecture(
        widths=(32, 32, 64, 64),
        blocks=("R", "R", "R", "R"),
        t1_blocks=1,
        t2_blocks=1,
        num_classes=3,
        input_size=(96, 128),
    )
    space = SearchSpace(template=template, positions=(1, 1, 2, 1))

    entry = Entry("point", 16, 64, 64, 6, 8)
    priced = [e for e in space_entries(template, space.widths, oa=False) if e.op == "point"]
    assert len(priced) > 4
    for probe in terms(entry):
        session = open_session("onnxruntime", write(probe).onnx, 1)
        assert session.run({"x0": np.zeros((1, 64, 6, 8), np.float32)})[0].shape == (1, 64, 6, 8)

    torch.manual_seed(0)
    supernet = Supernet(space)
    logits = {place: (0.0, 0.1, 0.2, 1.0, 0.0) for place in supernet.logits()}
    full = State.full(space)
    network = full.architecture(space, logits)
    assert network.blocks == ("P", "P", "PP", "P")
    assert count_macs(network).total > 0
    rules = ThinningRules(stage_rule="all")
    assert "PR" in {move.kind for move in every_move(full, space, logits, rules)}

    def macs(state: State) -> float:
        return float(count_macs(state.architecture(space, logits)).total)

    def drop(before: State, after: State) -> float:
        return removed_mass(before, after, logits)

    assert any(trial.chosen for trial in thin_step(1, full, space, logits, rules, macs, drop))

    narrow = network.with_(widths=(32, 32, 32, 32), blocks=("P", "P", "P", "P"))
    randomise(supernet)
    detector = inherit(supernet, narrow, ((0,), (0,), (1,), (0,))).eval()
    assert sum(p.numel() for p in detector.deployed().units.parameters()) == count_params(narrow)
    image = np.random.default_rng(0).integers(0, 256, (1, 96, 128, 3), dtype=np.uint8)
    session = open_session("onnxruntime", detector.to_onnx().SerializeToString(), 1)
    boxes, scores, _ = session.run({"image": image})
    with torch.no_grad():
        expected = detector.deployed().detect(torch.from_numpy(image))[0]
    np.testing.assert_allclose(scores, expected.scores.numpy(), atol=1e-4)
    assert len(boxes) == len(scores) > 0


if __name__ == "__main__":
    main()
