"""A DETR small enough for tests, and what to do with it."""

import numpy as np
import torch
from torch import Tensor, nn

from deploy.edge.runtimes import open_session
from supernet.detr import DetrArchitecture
from supernet.detr.detr import Host
from supernet.detr.resnet import FrozenNorm
from supernet.graph.style import GraphStyle
from supernet.graph.writer import GraphWriter

SMALL = DetrArchitecture(
    name="small",
    num_classes=5,
    input_size=(96, 160),
    depth=18,
    base=8,
    width=32,
    heads=4,
    encoder_layers=2,
    decoder_layers=2,
    hidden=48,
    queries=7,
)


def trainable(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def shaken(network: nn.Module) -> nn.Module:
    """Give everything random values, normalisation too."""
    for module in network.modules():
        if isinstance(module, FrozenNorm | nn.BatchNorm2d):
            for value, low, high in (
                (module.weight, 0.5, 1.0),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 2.0),
            ):
                assert isinstance(value, Tensor)
                nn.init.uniform_(value, low, high)
    return network.eval()


def images(B: int = 1, size: tuple[int, int] = (96, 160)) -> Tensor:
    return torch.randint(0, 256, (B, *size, 3), dtype=torch.uint8)


def graph_differs_by(network: nn.Module, runtime: str, opset: int | None = None) -> float:
    """Return the largest difference of a graph's logits and boxes from the network's."""
    assert isinstance(network, Host)
    image = images()
    with torch.inference_mode():
        expected = network(image)
    graph = GraphWriter(GraphStyle(opset=opset))
    logits, boxes = network.emit(graph, graph.input("image", image.shape, "uint8"))
    model = graph.model([("logits", logits, "float32"), ("boxes", boxes, "float32")])
    found = open_session(runtime, model.SerializeToString(), 1).run({"image": image.numpy()})
    return max(float(np.abs(a - b.numpy()).max()) for a, b in zip(found, expected, strict=True))
