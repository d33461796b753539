"""Multiply-adds and parameters of a deployed network."""

from .detr.family import DetrArchitecture
from .graph.writer import GraphWriter
from .heatdetr.operators import OPERATORS
from .heatdetr.operators.entries import Macs
from .network import AnyArchitecture, build_detr


def count_macs(architecture: AnyArchitecture) -> Macs:
    """Count the multiply-adds of one image.

    Of HeatDETR in closed form (spec section 3), of DETR's family in the deployed graph.
    """
    if architecture.family != "heatdetr":
        counted = _graph(architecture).macs
        image = sum(count for scope, count in counted.items() if scope == "backbone/")
        return Macs(image, counted.total() - image)
    total = Macs()
    for entry in architecture.entries().values():
        total += OPERATORS[entry.op].macs(entry)
    return total


def count_params(architecture: AnyArchitecture) -> int:
    """Count the parameters left after BN folding, with the biases that folding adds."""
    if architecture.family == "heatdetr":
        return sum(OPERATORS[entry.op].params(entry) for entry in architecture.entries().values())
    network = build_detr(architecture)
    norms = sum(len(value) for key, value in network.state_dict().items() if "_mean" in key)
    return sum(p.numel() for p in network.parameters()) + norms


def _graph(architecture: DetrArchitecture) -> GraphWriter:
    """Write the graph of a network with fresh weights."""
    host = build_detr(architecture).eval()
    graph = GraphWriter()
    host.emit(graph, graph.input("image", (1, *architecture.input_size, 3), "uint8"))
    return graph
