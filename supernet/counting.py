"""Multiply-adds and parameters of a deployed network."""

from .detr.detr import Host
from .detr.family import DetrArchitecture
from .graph.writer import GraphWriter
from .heatdetr.architecture import Architecture
from .heatdetr.operators import OPERATORS
from .heatdetr.operators.entries import Macs
from .network import AnyArchitecture, build


def count_macs(architecture: AnyArchitecture) -> Macs:
    """Count the multiply-adds of one image.

    Of HeatDETR in closed form (spec section 3), of DETR's family in the deployed graph.
    """
    if isinstance(architecture, DetrArchitecture):
        counted = _graph(architecture).macs
        image = sum(count for scope, count in counted.items() if scope == "backbone/")
        return Macs(image, counted.total() - image)
    total = Macs()
    for entry in architecture.entries().values():
        total += OPERATORS[entry.op].macs(entry)
    return total


def count_params(architecture: AnyArchitecture) -> int:
    """Count the parameters left after BN folding, the biases that folding leaves included."""
    if isinstance(architecture, Architecture):
        return sum(OPERATORS[entry.op].params(entry) for entry in architecture.entries().values())
    network = build(architecture)
    norms = sum(len(value) for key, value in network.state_dict().items() if "_mean" in key)
    return sum(p.numel() for p in network.parameters()) + norms


def _graph(architecture: DetrArchitecture) -> GraphWriter:
    """Write a network with fresh weights."""
    host = build(architecture).eval()
    assert isinstance(host, Host)
    graph = GraphWriter()
    host.emit(graph, graph.input("image", (1, *architecture.input_size, 3), "uint8"))
    return graph
