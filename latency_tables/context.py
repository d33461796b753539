"""Small models that measure an entry where it will stand: between neighbours (spec section 8.4).

A lone operator pays for the session's boundary: copies, layout changes, the call itself. So each
entry's time is a sum of model times with signs, in which those costs cancel:

- entries that keep their map: `(t(three in a row) - t(one)) / 2`;
- all others: a sandwich between caps (1x1 convolution and ReLU), minus the caps. Caps instead of
  the spec's RepCNN blocks: nine times cheaper, so that less noise is subtracted;
- the stem keeps the real input side and the head the real output side, so that the fixed cost of
  a run is counted once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn

from supernet.architecture import Entry
from supernet.onnx_graph import GraphWriter, Value
from supernet.operators import OPERATORS, Unit
from supernet.operators.convbn import ConvBN, fold
from supernet.operators.head import Head
from supernet.operators.repcnn import ConvRelu

KEEPS_SHAPE = ("repcnn", "wmsa", "swmsa", "cw", "oa")

BUSY_MAPS = 2
"""Class maps of a random head that pass the score threshold everywhere: some hundred candidates for
NMS, as in a busy picture. An untrained head would make NMS look free, a wild one too dear."""


@dataclass(frozen=True, slots=True)
class ProbeModel:
    """A model to be timed: caps in a row, an entry repeated, or an entry between caps."""

    kind: Literal["cap", "chain", "sandwich", "preprocessed", "decoded"]
    entry: Entry
    """The entry; for caps an entry that carries the map's width and size."""
    count: int = 1


def cap_entry(channels: int, h: int, w: int) -> Entry:
    """Name a cap by the map it works on."""
    return Entry("cap", 0, channels, channels, h, w)


def terms(entry: Entry) -> dict[ProbeModel, float]:
    """Return the models whose signed times add up to the entry's milliseconds."""
    if entry.op in KEEPS_SHAPE:
        return {ProbeModel("chain", entry, 3): 0.5, ProbeModel("chain", entry, 1): -0.5}
    if entry.op == "preprocess":
        stem = Entry("stem", 1, 3, 32, entry.h, entry.w)
        return {ProbeModel("preprocessed", stem): 1.0, ProbeModel("sandwich", stem): -1.0}
    if entry.op == "decode":
        head = head_of(entry)
        return {ProbeModel("decoded", head): 1.0, ProbeModel("sandwich", head): -1.0}
    operator = OPERATORS[entry.op]
    total: dict[ProbeModel, float] = {ProbeModel("sandwich", entry): 1.0}

    def subtract(shape: tuple[int, int, int], *, with_fixed_cost: bool) -> None:
        cap = cap_entry(*shape)
        parts = {1: -1.0} if with_fixed_cost else {3: -0.5, 1: 0.5}
        for count, sign in parts.items():
            probe = ProbeModel("cap", cap, count)
            total[probe] = total.get(probe, 0.0) + sign

    if entry.op != "stem":
        for index, shape in enumerate(operator.inputs(entry)):
            subtract(shape, with_fixed_cost=index == 0)
    if entry.op != "head":
        for shape in operator.outputs(entry):
            subtract(shape, with_fixed_cost=False)
    return total


def head_of(decode: Entry) -> Entry:
    """Return the narrowest head entry in front of a decode entry."""
    outputs = decode.anchors * (int(decode.extra) + 5)
    return Entry(
        "head", decode.stride, 32, outputs, decode.h, decode.w, decode.extra, decode.anchors
    )


def build(probe: ProbeModel) -> tuple[bytes, Mapping[str, Any]]:
    """Write a probe's ONNX model with random weights; return it and what to feed it."""
    torch.manual_seed(0)
    graph, rng = GraphWriter("probe"), np.random.default_rng(0)
    entry = probe.entry
    feeds: dict[str, Any] = {}

    def feed(shape: tuple[int, int, int]) -> Value:
        name = f"x{len(feeds)}"
        feeds[name] = rng.standard_normal((1, *shape), dtype=np.float32)
        return graph.input(name, (1, *shape))

    if probe.kind == "cap":
        x = feed((entry.d_in, entry.h, entry.w))
        for _ in range(probe.count):
            x = _cap(graph, x)
        outputs = [x]
    elif probe.kind == "chain":
        x = feed((entry.d_in, entry.h, entry.w))
        for _ in range(probe.count):
            x = _unit(entry).emit(graph, x)
        outputs = [x]
    elif probe.kind == "preprocessed":
        image = rng.integers(0, 256, (1, entry.h, entry.w, 3), dtype=np.uint8)
        feeds["image"] = image
        x = graph.input("image", image.shape, "uint8")
        x = _unit(Entry("preprocess", 1, 3, 3, entry.h, entry.w)).emit(graph, x)
        outputs = [_cap(graph, _unit(entry).emit(graph, x))]
    else:
        inputs = [feed(shape) for shape in OPERATORS[entry.op].inputs(entry)]
        if entry.op != "stem":
            inputs = [_cap(graph, x) for x in inputs]
        results = _unit(entry).emit(graph, *inputs)
        outputs = list(results) if isinstance(results, tuple) else [results]
        if probe.kind == "decoded":
            decode = Entry("decode", 32, 0, 6, entry.h, entry.w, entry.extra, entry.anchors)
            outputs = list(_unit(decode).emit(graph, *outputs))
        elif entry.op != "head":
            outputs = [_cap(graph, x) for x in outputs]
    named = [
        (f"y{index}", value, "int64" if probe.kind == "decoded" and index == 2 else "float32")
        for index, value in enumerate(outputs)
    ]
    return graph.model(named).SerializeToString(), feeds


def _unit(entry: Entry) -> Unit:
    module = OPERATORS[entry.op].build(entry)
    randomise(module)
    return cast(Unit, fold(nn.ModuleList([module]))[0])


def _cap(graph: GraphWriter, x: Value) -> Value:
    channels = x.shape[1]
    conv = ConvBN(channels, channels)
    return ConvRelu(conv.fold()).emit(graph, x)


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Give a fresh network weights that no runtime can optimise away, and a busy head."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.0)
            nn.init.normal_(part.bias, std=0.1)
        elif isinstance(part, Head):
            assert part.cls.bias is not None and part.obj.bias is not None
            nn.init.normal_(part.cls.weight, std=part.cls.weight[0].numel() ** -0.5)
            nn.init.constant_(part.cls.bias, -6.0)
            part.cls.bias[torch.linspace(0, len(part.cls.bias) - 1, BUSY_MAPS).long()] = 0.5
            nn.init.constant_(part.obj.bias, 1.0)
