"""Writes the models that are timed, probes and whole networks, with random weights.

`ProbeNet.wire` connects the units of both an ONNX graph and a torch module.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from supernet.data.score_calibration import ScoreCalibration
from supernet.graph.folding import fold
from supernet.graph.style import GraphStyle
from supernet.graph.writer import GraphWriter
from supernet.heatdetr.architecture import HEADS, Architecture
from supernet.heatdetr.detector import Detector
from supernet.heatdetr.operators import OPERATORS, Unit
from supernet.heatdetr.operators.convbn import ConvBN
from supernet.heatdetr.operators.decode import Decode
from supernet.heatdetr.operators.head import Head
from supernet.heatdetr.operators.repcnn import ConvRelu

from .probe.setting import Model, Setting, Shapes
from .terms import ENDS, ProbeModel, decode_of
from .torch_session import TorchSession

PLAIN = Setting(runtime="onnxruntime", precision="f32", threads=1)
"""Default setting that models are written for."""

BUSY_CLASSES = 3
"""Classes that pass the score threshold everywhere in a random head: on most sizes more candidates
than NMS is given, as a trained network has on an image full of objects. An untrained head would
give it none."""
BUSY_GROWTH = 0.7
"""Log of what a random head multiplies its anchors by, so that boxes overlap: NMS then looks at
about as many candidates before it has kept its 100 as with a trained network (410 to 503 on four
images of `heat data cells`)."""


class ProbeNet(nn.Module):
    """The network of a probe: its units and their connections."""

    def __init__(self, probe: ProbeModel) -> None:
        """Build the units, in deployed form and with random weights."""
        super().__init__()
        torch.manual_seed(0)
        self.probe = probe
        entry = probe.entry
        units: dict[str, nn.Module] = {}
        for index in range(probe.count):
            is_cap = probe.kind == "cap"
            units[f"unit{index}"] = _cap(entry.d_in) if is_cap else OPERATORS[entry.op].build(entry)
        if probe.kind == "preprocessed":
            units["preprocess"] = OPERATORS["preprocess"].build(entry)
        if probe.kind in ENDS.values():
            end = decode_of(entry, probe.kind)
            units["decode"] = OPERATORS[end.op].build(end)
        if probe.kind in ("sandwich", *ENDS.values()) and entry.op != "stem":
            for index, (channels, _, _) in enumerate(OPERATORS[entry.op].inputs(entry)):
                units[f"before{index}"] = _cap(channels)
        if probe.kind in ("sandwich", "preprocessed") and entry.op not in HEADS.values():
            for index, (channels, _, _) in enumerate(OPERATORS[entry.op].outputs(entry)):
                units[f"after{index}"] = _cap(channels)
        for unit in units.values():
            randomise(unit)
            if isinstance(unit, Decode):
                _calibrate(unit)
        self.units = fold(nn.ModuleDict(units))

    def shapes(self) -> Shapes:
        """Return the shapes and dtypes of the inputs; the batch is 1."""
        entry = self.probe.entry
        if self.probe.kind == "preprocessed" or entry.op == "preprocess":
            return {"image": ((1, entry.h, entry.w, 3), "uint8")}
        if self.probe.kind == "cap":
            shapes: Sequence[tuple[int, ...]] = [(entry.d_in, entry.h, entry.w)]
        else:
            shapes = OPERATORS[entry.op].inputs(entry)
        # The input of decoding is the head's maps, without a batch axis in the deployed graph.
        batch = () if entry.op in ENDS else (1,)
        return {f"x{i}": ((*batch, *shape), "float32") for i, shape in enumerate(shapes)}

    def wire(self, call: Any, *inputs: Any) -> list[Any]:
        """Connect the units; `call(name, *values)` applies one."""
        kind, count = self.probe.kind, self.probe.count
        if kind in ("cap", "chain"):
            (x,) = inputs
            for index in range(count):
                x = call(f"unit{index}", x)
            return [x]
        if kind == "preprocessed":
            inputs = (call("preprocess", inputs[0]),)
        results = call("unit0", *(self._capped(call, "before", inputs)))
        outputs = list(results) if isinstance(results, tuple) else [results]
        if kind in ENDS.values():
            return list(call("decode", *outputs))
        return list(self._capped(call, "after", outputs))

    def _capped(self, call: Any, side: str, values: Sequence[Any]) -> list[Any]:
        return [
            call(f"{side}{index}", value) if f"{side}{index}" in self.units else value
            for index, value in enumerate(values)
        ]

    def forward(self, *inputs: Tensor) -> list[Any]:
        """Run in torch."""
        return self.wire(lambda name, *values: self.units[name](*values), *inputs)


def write(probe: ProbeModel, setting: Setting = PLAIN) -> Model:
    """Write a probe's model for a setting's runtime and precision."""
    net = ProbeNet(probe)
    inputs = net.shapes()
    if setting.runtime == "torch":
        return Model(b"", inputs, partial(TorchSession, net))
    graph = GraphWriter(GraphStyle.of(setting.runtime, setting.graph_precision), "probe")

    def call(name: str, *values: Any) -> Any:
        graph.scope(name)
        return cast(Unit, net.units[name]).emit(graph, *values)

    outputs = net.wire(
        call, *(graph.input(name, shape, dtype) for name, (shape, dtype) in inputs.items())
    )
    decodes = probe.entry.op in ENDS or "decode" in net.units
    named = [
        (f"y{index}", value, "int64" if decodes and index == 2 else "float32")
        for index, value in enumerate(outputs)
    ]
    return Model(graph.model(named).SerializeToString(), inputs)


def write_network(architecture: Architecture, setting: Setting = PLAIN, *, seed: int = 0) -> Model:
    """Write a whole deployed network, from uint8 image to boxes, with random weights."""
    network = random_network(architecture, seed=seed)
    image = {"image": ((1, *architecture.input_size, 3), "uint8")}
    if setting.runtime == "torch":
        return Model(b"", image, partial(TorchSession, network.deployed()))
    model = network.to_onnx(style=GraphStyle.of(setting.runtime, setting.graph_precision))
    return Model(model.SerializeToString(), image)


def random_network(architecture: Architecture, *, seed: int = 0) -> Detector:
    """Build a network with random weights, a busy head and calibrated scores."""
    torch.manual_seed(seed)
    network = Detector(architecture)
    randomise(network)
    _calibrate(network.decode)
    return network.eval()


def _calibrate(decode: Decode) -> None:
    """Give a decoder a calibration that changes scores, which costs what any calibration does."""
    decode.calibration = ScoreCalibration((1.5,) * decode.num_classes, (0.5,) * decode.num_classes)


def _cap(channels: int) -> nn.Module:
    return ConvRelu(ConvBN(channels, channels).fold())


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Randomise a new network so that no runtime can optimise parts away and NMS has candidates."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.0)
            nn.init.normal_(part.bias, std=0.1)
        elif isinstance(part, Head):
            assert part.cls.bias is not None and part.obj.bias is not None
            nn.init.normal_(part.cls.weight, std=part.cls.weight[0].numel() ** -0.5)
            nn.init.constant_(part.cls.bias, -6.0)
            last = part.num_classes - 1
            busy = torch.linspace(0, last, min(BUSY_CLASSES, part.num_classes)).long()
            part.cls.bias.view(part.num_anchors, -1)[:, busy] = 0.5
            nn.init.constant_(part.obj.bias, 1.0)
            part.begin_at(BUSY_GROWTH)
