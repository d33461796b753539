"""Exported attention cores compute what torch computes, in both runtimes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.build_engine import plan_engine
from deploy.edge.runtimes import open_session
from supernet.attention import ActAttention, Attention, EnactAttention, PoolAttention
from supernet.errors import UserError
from supernet.graph.style import GraphStyle
from supernet.graph.writer import GraphWriter

B, H, E = 2, 3, 32
D = H * E


def graph_of(core: Attention, N: int, M: int, scatter_add: bool = True) -> bytes:
    graph = GraphWriter(GraphStyle(scatter_add=scatter_add))
    q = graph.input("q", (B * H, N, E))
    x = graph.input("x", (B, M, D))
    k, v = core.emit_condense(graph, x, x)
    heads = []
    for part in (k, v):
        split = graph.reshape(part, B, part.shape[1], H, E)
        split = graph.transpose(split, 0, 2, 1, 3)
        heads.append(graph.reshape(split, B * H, part.shape[1], E))
    return graph.model(
        [("read", core.emit_attend(graph, q, *heads), "float32")]
    ).SerializeToString()


CORES = {
    "exact": lambda: Attention(),
    "act": lambda: ActAttention(most=60),
    "act of few": lambda: ActAttention(most=7),
    "act of keys": lambda: ActAttention(clusters="keys", most=60),
    "act of both": lambda: ActAttention(clusters="both", most=31),
    "enact": lambda: EnactAttention(D, 6),
    "pool": lambda: PoolAttention(6),
}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", CORES)
@pytest.mark.parametrize("size", [(80, 80), (1, 1), (5, 77)])
@pytest.mark.parametrize("scatter_add", [True, False])
def test_graphs_are_what_torch_computes(
    runtime: str, name: str, size: tuple[int, int], scatter_add: bool
) -> None:
    N, M = size
    core = CORES[name]().eval()
    q, x = torch.randn(B, H, N, E) * 2 * E**-0.5, 1.5 * torch.randn(B, M, D)
    with torch.inference_mode():
        k, v, _ = core.condense(x, x)
        heads = [y.view(B, -1, H, E).transpose(1, 2) for y in (k, v)]
        expected = core.attend(q, *heads).flatten(0, 1).numpy()
    session = open_session(runtime, graph_of(core, N, M, scatter_add), 1)
    feeds = {"q": q.flatten(0, 1).numpy(), "x": x.numpy()}
    (found,) = session.run(feeds)
    assert np.abs(found - expected).max() <= 1e-5


def test_what_is_not_static_is_not_exported() -> None:
    with pytest.raises(UserError, match="bound of its clusters"):
        graph_of(ActAttention(), 8, 8)
    with pytest.raises(UserError, match="calibrate a constant"):
        graph_of(EnactAttention(D), 8, 8)


def test_tensorrt_builds_them(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    plan = plan_engine("f32", "8.6")
    for name, core in CORES.items():
        graph = GraphWriter(GraphStyle(opset=plan.opset, scatter_add=False))
        parts = [graph.input(letter, (B * H, 80, E)) for letter in "qkv"]
        x = graph.input("x", (B, 80, D))
        windows, _ = core().emit_condense(graph, x, x)
        read = core().emit_attend(graph, *parts)
        model = graph.model([("read", read, "float32"), ("windows", windows, "float32")])
        assert plan.build(model.SerializeToString(), tmp_path / f"{name}.engine", None)
