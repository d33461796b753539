"""Multi-scale SAM-DETR (Zhang et al. 2022): the cells of maps of three strides are tokens.

The encoder's attention is deformable and its feed-forward layers are 1,024 wide, and the decoder's
layers attend to one map each, from coarse to fine. The paper has no details: this arrangement has
exactly the number of parameters of its log (54,972,298). The map of each layer, which has no
parameters, is our choice: two layers each.

Shape suffixes: B batch, N tokens of all maps, L maps.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..graph.nodes import Value
from ..graph.preprocess import Preprocess
from ..graph.writer import GraphWriter
from .deformable import DeformableLayer
from .family import DetrArchitecture
from .positions import cell_centres
from .sam_detr import SamDetr, valid_ratio
from .tokens import Tokens


class MultiScaleSamDetr(SamDetr):
    """SAM-DETR over maps of strides 8, 16 and 32, with a deformable encoder."""

    def __init__(self, architecture: DetrArchitecture) -> None:
        """Build a projection for each map, and an encoder of deformable attention."""
        super().__init__(architecture)
        a = architecture
        finer = [self.projection(channels) for channels in self.body.widths[-a.levels : -1]]
        self.input_proj = nn.ModuleList([*finer, self.input_proj])
        self.level_embed = nn.Parameter(torch.randn(a.levels, a.width))
        hidden = a.encoder_hidden or a.hidden
        layers = (
            DeformableLayer(a.width, a.heads, hidden, a.dropout, a.levels)
            for _ in range(a.encoder_layers)
        )
        self.transformer["encoder"] = nn.ModuleDict({"layers": nn.ModuleList(layers)})

    @property
    def encoder_layers(self) -> nn.ModuleList:
        """The encoder layers."""
        return self.transformer.get_submodule("encoder.layers")  # type: ignore[return-value]

    def tokens(self, image_BHW3: Tensor, pad_BHW: Tensor | None = None) -> Tokens:
        """Return the tokens of all maps, the finest first."""
        maps = self.body.maps(Preprocess()(image_BHW3))[-self.architecture.levels :]
        assert isinstance(self.input_proj, nn.ModuleList)
        return joined(
            [
                self.tokens_of(project(x), pad_BHW)
                for project, x in zip(self.input_proj, maps, strict=True)
            ]
        )

    def encoded(self, tokens: Tokens) -> Tokens:
        """Return the tokens after the encoder; only it gets the embedding of each token's map."""
        ratios = [valid_ratio(part) for part in tokens.by_map()]
        places = places_of(tokens.maps, torch.stack(ratios, 1))
        level = torch.repeat_interleave(
            self.level_embed, torch.tensor(tokens.sizes, device=self.level_embed.device), 0
        )
        seen = replace(tokens, pos_BND=tokens.pos_BND + level)
        for layer in self.encoder_layers:
            seen = replace(seen, x_BND=layer(seen, places))
        return replace(tokens, x_BND=seen.x_BND)

    def emit_memory(self, graph: GraphWriter, image: Value) -> tuple[Value, Value]:
        """Write the encoded tokens of all maps and their positions, [1, N, D]."""
        a = self.architecture
        graph.scope("backbone")
        maps = self.body.emit(graph, Preprocess().emit(graph, image))[-a.levels :]
        assert isinstance(self.input_proj, nn.ModuleList)
        parts = [
            self.emit_tokens(graph, x, project)
            for project, x in zip(self.input_proj, maps, strict=True)
        ]
        x, pos = (graph.concat(values, 1) for values in zip(*parts, strict=True))
        graph.scope("encoder")
        levels = [
            graph.add(value, graph.const(embedding))
            for (_, value), embedding in zip(parts, self.level_embed, strict=True)
        ]
        seen = graph.concat(levels, 1)
        places = places_of(a.maps, torch.ones(1, a.levels, 2))[0]
        for layer in self.encoder_layers:
            assert isinstance(layer, DeformableLayer)
            x = layer.emit(graph, x, seen, places, a.maps)
        return x, pos


def joined(parts: list[Tokens]) -> Tokens:
    """Return the tokens of several maps as one, what `Tokens.by_map` takes apart."""
    pads = [part.pad_BN for part in parts if part.pad_BN is not None]
    return Tokens(
        torch.cat([part.x_BND for part in parts], 1),
        torch.cat([part.pos_BND for part in parts], 1),
        torch.cat(pads, 1) if pads else None,
        tuple(part.cells for part in parts),
    )


def places_of(maps: Sequence[tuple[int, int]], ratio_BL2: Tensor) -> Tensor:
    """Return where each token lies in every map, (x, y) as shares of it, [B, N, L, 2].

    `ratio` is the share of each map's width and height that is no padding: a place in the valid
    part of one is the same place in that of the others.
    """
    found = []
    for level, (h, w) in enumerate(maps):
        place_N2 = cell_centres((h, w), ratio_BL2.device) / ratio_BL2.new_tensor([w, h])
        valid_BN2 = place_N2 / ratio_BL2[:, level, None]
        found.append(valid_BN2[:, :, None] * ratio_BL2[:, None])
    return torch.cat(found, 1)
