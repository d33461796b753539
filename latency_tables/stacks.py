"""Times stacks of twelve layers: the comparison of the paper's Figure 2 on this machine.

DeiT- and Swin-like layers with LayerNorm, the same without (BatchNorm folds away), our blocks, and
RepCNN with its three branches not merged. All work on one map of one width. Weights are random.
Shape suffixes: T tokens, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from supernet.graph.folding import fold
from supernet.graph.nodes import Value
from supernet.graph.style import GraphStyle
from supernet.graph.writer import GraphWriter
from supernet.heatdetr.operators import OPERATORS, Unit
from supernet.heatdetr.operators.entries import Entry
from supernet.heatdetr.operators.repcnn import RepCNN

from .models import randomise
from .probe.batch import load
from .probe.measure import time_jobs
from .probe.setting import Model, Setting

LAYERS = 12
HEAD = 32
WINDOW = 7
MLP = 4


@dataclass(frozen=True, slots=True)
class Setup:
    """The feature map that every stack works on."""

    width: int = 192
    side: int = 28
    """Height and width in cells: stride 16 of a 448x448 image."""


def stack_models(setup: Setup, setting: Setting) -> dict[str, Model]:
    """Return every stack as an ONNX model."""
    blocks = {
        "RepCNN": ["repcnn"],
        "WMSA_bn": ["wmsa"],
        "SWMSA_bn": ["swmsa"],
        "channel-wise": ["cw"],
        "self-attention": ["oa"],
        # A HOD as in Table 3: convolutions, then windows, and the global block at the end.
        "HOD": ["repcnn"] * 4 + ["wmsa", "swmsa"] * 3 + ["cw"] * 2,
    }
    models = {
        name: _write(_our_layers(operators, setup), setup, setting)
        for name, operators in blocks.items()
    }
    for name, windows in (("DeiT", False), ("Swin", True)):
        for norm in ("LN", "BN"):
            layers = _token_layers(setup, windows=windows, layer_norm=norm == "LN")
            models[f"{name}-{norm}"] = _write(layers, setup, setting, tokens=True)
    models["RepCNN, branches"] = _write(_branched_layers(setup), setup, setting)
    return models


Layer = Callable[[GraphWriter, Value], Value]


def _write(
    layers: Sequence[Layer], setup: Setup, setting: Setting, *, tokens: bool = False
) -> Model:
    graph = GraphWriter(GraphStyle.of(setting.runtime, setting.graph_precision), "stack")
    shape = (setup.side**2, setup.width) if tokens else (1, setup.width, setup.side, setup.side)
    x = graph.input("x", shape)
    for layer in layers:
        x = layer(graph, x)
    return Model(graph.model([("y", x, "float32")]).SerializeToString(), {"x": (shape, "float32")})


def _our_layers(operators: Sequence[str], setup: Setup) -> list[Layer]:
    layers = []
    for index in range(LAYERS):
        op = operators[index % len(operators)]
        entry = Entry(op, 16, setup.width, setup.width, setup.side, setup.side)
        module = OPERATORS[op].build(entry)
        randomise(module)
        layers.append(_emits(fold(module)))
    return layers


def _emits(unit: object) -> Layer:
    return lambda graph, x: cast(Value, cast(Unit, unit).emit(graph, x))


def _branched_layers(setup: Setup) -> list[Layer]:
    """Return RepCNN blocks whose 3x3, 1x1 and identity branches are not merged."""

    def layer(graph: GraphWriter, x: Value) -> Value:
        block = RepCNN(setup.width).eval()
        randomise(block)
        identity = graph.binary("Mul", x, graph.const(_random(1, setup.width, 1, 1)))
        branches = (graph.conv(x, part.fold()) for part in (block.conv3, block.conv1))
        total = graph.add(*branches)
        return graph.unary("Relu", graph.add(total, identity))

    return [layer] * LAYERS


_rng = np.random.default_rng(0)


def _random(*shape: int) -> NDArray[np.float32]:
    values: NDArray[np.float64] = _rng.standard_normal(shape) * shape[0] ** -0.5
    return values.astype(np.float32)


def _token_layers(setup: Setup, *, windows: bool, layer_norm: bool) -> list[Layer]:
    """Return transformer layers of DeiT or Swin on tokens [T, D]."""
    D, N = setup.width, setup.width // HEAD
    rows = setup.side // WINDOW

    def norm(graph: GraphWriter, x_TD: Value) -> Value:
        if not layer_norm:
            return x_TD
        scale, bias = graph.const(np.abs(_random(D)) + 0.5), graph.const(_random(D))
        return graph.op("LayerNormalization", [x_TD, scale, bias], x_TD.shape, axis=-1)

    def linear(graph: GraphWriter, x_TD: Value, width: int) -> Value:
        product = graph.matmul(x_TD, graph.const(_random(x_TD.shape[-1], width)))
        return graph.add(product, graph.const(_random(width)))

    def attention(graph: GraphWriter, x_TD: Value, shift: int) -> Value:
        T = x_TD.shape[0]
        groups, tokens = (rows * rows, WINDOW**2) if windows else (1, T)
        x = x_TD
        if windows:
            x = graph.reshape(x, setup.side, setup.side, D)
            for axis in (0, 1) if shift else ():
                x = graph.roll(x, axis, -shift)
            x = graph.reshape(x, rows, WINDOW, rows, WINDOW, D)
            x = graph.reshape(graph.transpose(x, 0, 2, 1, 3, 4), T, D)
        qkv = graph.reshape(linear(graph, x, 3 * D), groups, tokens, 3, N, HEAD)
        qkv = graph.transpose(qkv, 2, 0, 3, 1, 4)
        q, k, v = (
            graph.reshape(part, groups, N, tokens, HEAD) for part in graph.split(qkv, 0, (1, 1, 1))
        )
        scores = graph.binary("Mul", graph.matmul(q, graph.swap(k)), graph.scalar(HEAD**-0.5))
        out = graph.matmul(graph.unary("Softmax", scores, axis=-1), v)
        out = graph.reshape(graph.transpose(out, 0, 2, 1, 3), T, D)
        out = linear(graph, out, D)
        if windows:
            out = graph.reshape(out, rows, rows, WINDOW, WINDOW, D)
            out = graph.reshape(graph.transpose(out, 0, 2, 1, 3, 4), setup.side, setup.side, D)
            for axis in (0, 1) if shift else ():
                out = graph.roll(out, axis, shift)
            out = graph.reshape(out, T, D)
        return out

    def layer_of(index: int) -> Layer:
        shift = WINDOW // 2 if windows and index % 2 else 0

        def layer(graph: GraphWriter, x: Value) -> Value:
            x = graph.add(x, attention(graph, norm(graph, x), shift))
            hidden = graph.unary("Gelu", linear(graph, norm(graph, x), MLP * D))
            return graph.add(x, linear(graph, hidden, D))

        return layer

    return [layer_of(index) for index in range(LAYERS)]


def measure_stacks(setting: Setting, setup: Setup | None = None) -> dict[str, float]:
    """Return milliseconds of every stack on this machine, timed interleaved."""
    setup = setup or Setup()
    models = stack_models(setup, setting)
    jobs = {name: load(model, setting) for name, model in models.items()}
    timings = time_jobs(jobs)
    for job in jobs.values():
        job.session.close()
    return {name: timing.ms for name, timing in timings.items()}
