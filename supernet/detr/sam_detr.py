"""SAM-DETR (Zhang et al. 2022): queries are boxes that the layers of the decoder refine.

Shape suffixes: B batch, N tokens, Q queries, K classes, S decoder layers.
"""

import math

import torch
from torch import Tensor, nn

from ..graph.nodes import Value
from ..graph.writer import GraphWriter
from .detr import Host
from .family import DetrArchitecture
from .semantics_aligner import AlignerLayer
from .tokens import Tokens
from .transformer import Mlp

PRIOR = 0.01
"""Initial class probability."""


class SamDetr(Host):
    """SAM-DETR: every decoder layer aligns queries with tokens and refines their boxes."""

    offset = 0.5

    def __init__(self, architecture: DetrArchitecture) -> None:
        """Build a network with fresh weights; boxes start spread over the image."""
        super().__init__(architecture)
        a = architecture
        layers = [
            AlignerLayer(a.width, a.heads, a.hidden, a.dropout, smca=a.smca)
            for _ in range(a.decoder_layers)
        ]
        self.transformer["decoder"] = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.class_embed = nn.ModuleList(nn.Linear(a.width, a.num_classes) for _ in layers)
        self.bbox_embed = nn.ModuleList(Mlp(a.width, a.width, a.width, 4) for _ in layers)
        for parameter in self.transformer.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)
        for classes, boxes in zip(self.class_embed, self.bbox_embed, strict=True):
            last = boxes.get_submodule("layers.2")
            assert isinstance(classes, nn.Linear) and isinstance(last, nn.Linear)
            nn.init.constant_(classes.bias, -math.log((1 - PRIOR) / PRIOR))
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.query_embed = nn.Embedding(a.queries, 4)
        nn.init.uniform_(self.query_embed.weight[:, :2], -2.0, 2.0)
        nn.init.constant_(self.query_embed.weight[:, 2:], -1.5)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        return self.transformer.get_submodule("decoder.layers")  # type: ignore[return-value]

    def map_of(self, number: int) -> int:
        """Return the map that a decoder layer attends to: with several, from coarse to fine."""
        a = self.architecture
        return a.levels - 1 - number * a.levels // a.decoder_layers

    def decoded(self, memory: Tokens) -> tuple[Tensor, Tensor]:
        """Return class logits [S, B, Q, K] and boxes [S, B, Q, 4]; gradients stop at references."""
        B, _, D = memory.x_BND.shape
        reference = self.query_embed.weight.expand(B, -1, -1)
        x = reference.new_zeros(B, reference.shape[1], D)
        seen = [(part, valid_ratio(part)) for part in memory.by_map()]
        logits, boxes = [], []
        for number, (layer, classes, refine) in enumerate(
            zip(self.layers, self.class_embed, self.bbox_embed, strict=True)
        ):
            x = layer(x, reference.sigmoid(), *seen[self.map_of(number)])
            refined = reference + refine(x)
            logits.append(classes(x))
            boxes.append(refined.sigmoid())
            reference = refined.detach()
        return torch.stack(logits), torch.stack(boxes)

    def emit(self, graph: GraphWriter, image: Value) -> tuple[Value, Value]:
        """Write class logits [1, Q, K] and boxes cxcywh in shares [1, Q, 4]."""
        memory, pos = self.emit_memory(graph, image)
        a = self.architecture
        sizes = [h * w for h, w in a.maps]
        memories, places = (graph.split(part, 1, sizes) for part in (memory, pos))
        seen = list(zip(memories, places, a.maps, strict=True))
        reference = graph.const(self.query_embed.weight[None])
        x = graph.const(torch.zeros(1, a.queries, a.width))
        logits = reference
        for number, layer in enumerate(self.layers):
            graph.scope(f"decoder_{number}")
            boxes = graph.unary("Sigmoid", reference)
            assert isinstance(layer, AlignerLayer)
            x = layer.emit(graph, x, boxes, *seen[self.map_of(number)])
            refine, classes = self.bbox_embed[number], self.class_embed[number]
            assert isinstance(refine, Mlp) and isinstance(classes, nn.Linear)
            reference = graph.add(reference, refine.emit(graph, x))
            if number + 1 == a.decoder_layers:
                logits = graph.linear(x, classes)
        return logits, graph.unary("Sigmoid", reference)


def valid_ratio(memory: Tokens) -> Tensor:
    """Return the share of the map's width and height that is no padding, [B, 2]."""
    B = len(memory.x_BND)
    if memory.pad_BN is None:
        return memory.x_BND.new_ones(B, 2)
    h, w = memory.cells
    valid = (~memory.pad_BN).view(B, h, w)
    return torch.stack([valid[:, 0].float().mean(1), valid[:, :, 0].float().mean(1)], 1)
