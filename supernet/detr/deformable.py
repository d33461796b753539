"""Deformable attention (Zhu et al. 2021): tokens attend to a few points of every map.

A linear layer predicts offsets and weights of the points. The cost is linear in the number of
tokens, so that maps of small strides can be tokens too.

Shape suffixes: B batch, N tokens of all maps, D channels, H heads, E = D / H, L maps, P points.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..graph.nodes import Value
from ..graph.writer import GraphWriter
from .sampling import emit_sample, sample
from .tokens import Tokens
from .transformer import FeedForward, emit_heads, emit_joined

POINTS = 4


class DeformableAttention(nn.Module):
    """Attention to four points of each map, initially in rows that lead away from the token."""

    def __init__(self, width: int, heads: int, levels: int) -> None:
        """Build the projections of offsets, weights, values and results."""
        super().__init__()
        self.heads, self.levels = heads, levels
        self.sampling_offsets = nn.Linear(width, heads * levels * POINTS * 2)
        self.attention_weights = nn.Linear(width, heads * levels * POINTS)
        self.value_proj, self.output_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Initialise: a direction for each head, a distance for each point, equal weights."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        angles = torch.arange(self.heads) * 2 * math.pi / self.heads
        ways_H2 = torch.stack([angles.cos(), angles.sin()], 1)
        ways_H2 /= ways_H2.abs().amax(1, keepdim=True)
        steps = torch.arange(1, POINTS + 1)
        offsets = ways_H2[:, None, None] * steps[:, None]
        self.sampling_offsets.bias.copy_(offsets.expand(-1, self.levels, -1, -1).flatten())
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, q_BND: Tensor, tokens: Tokens, places_BNL2: Tensor) -> Tensor:
        """Attend to `tokens` around places, (x, y) in shares of each map; padding reads as 0."""
        B, N, D = q_BND.shape
        H, L = self.heads, self.levels
        value = self.value_proj(tokens.x_BND)
        if tokens.pad_BN is not None:
            value = value.masked_fill(tokens.pad_BN[..., None], 0.0)
        offsets_BNHLP2 = self.sampling_offsets(q_BND).view(B, N, H, L, POINTS, 2)
        weights_BNHLP = self.attention_weights(q_BND).view(B, N, H, -1).softmax(-1)
        weights_BHNLP = weights_BNHLP.view(B, N, H, L, POINTS).transpose(1, 2)
        read_BHNE = value.new_zeros(B, H, N, D // H)
        for level, ((h, w), part) in enumerate(
            zip(tokens.maps, value.split(tokens.sizes, 1), strict=True)
        ):
            maps = part.view(B, h, w, H, -1).permute(0, 3, 4, 1, 2).flatten(0, 1)
            shares = offsets_BNHLP2[:, :, :, level] / offsets_BNHLP2.new_tensor([w, h])
            points = 2 * (places_BNL2[:, :, None, level, None] + shares) - 1
            points = points.transpose(1, 2).flatten(0, 1).flatten(1, 2)
            found = sample(maps, points).view(B, H, N, POINTS, -1)
            read_BHNE = read_BHNE + (found * weights_BHNLP[:, :, :, level, :, None]).sum(3)
        return self.output_proj(read_BHNE.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def emit(
        self,
        graph: GraphWriter,
        q: Value,
        x: Value,
        places_NL2: Tensor,
        maps: Sequence[tuple[int, int]],
    ) -> Value:
        """Write `forward` for one image without padding: q and x [1, N, D]."""
        _, N, D = q.shape
        H, L, E = self.heads, self.levels, D // self.heads
        value = graph.swap(emit_heads(graph, graph.linear(x, self.value_proj), H))
        values = graph.split(value, 2, [h * w for h, w in maps])
        offsets = graph.reshape(graph.linear(q, self.sampling_offsets), N, H, L, POINTS, 2)
        offsets = graph.transpose(offsets, 2, 1, 0, 3, 4)
        found = []
        for level, ((h, w), part) in enumerate(zip(maps, values, strict=True)):
            away = graph.reshape(graph.slice(offsets, 0, level, level + 1), H, N, POINTS, 2)
            away = graph.binary("Mul", away, graph.const(torch.tensor([2 / w, 2 / h])))
            centre = graph.const(2 * places_NL2[None, :, level, None] - 1)
            map_ = graph.reshape(part, H, E, h, w)
            found.append(emit_sample(graph, map_, graph.add(away, centre)))
        weights = graph.reshape(graph.linear(q, self.attention_weights), N, H, L * POINTS)
        weights = graph.transpose(graph.unary("Softmax", weights, axis=-1), 1, 0, 2)
        weights = graph.reshape(weights, H, 1, N, L * POINTS)
        read = graph.binary("Mul", graph.concat(found, 3), weights)
        read = graph.op("ReduceSum", [read, graph.ints(3)], (H, E, N), keepdims=0)
        return graph.linear(emit_joined(graph, graph.swap(read), H), self.output_proj)


class DeformableLayer(FeedForward):
    """An encoder layer: deformable attention and feed-forward."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, levels: int) -> None:
        """Build attention, feed-forward and norms."""
        super().__init__(width, hidden, dropout)
        self.self_attn = DeformableAttention(width, heads, levels)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, tokens: Tokens, places_BNL2: Tensor) -> Tensor:
        """Return the tokens [B, N, D] after the layer."""
        x_BND = tokens.x_BND
        read = self.self_attn(x_BND + tokens.pos_BND, tokens, places_BNL2)
        x_BND = self.norm1(x_BND + self.dropout(read))
        return self.norm2(x_BND + self.dropout(self.feed(x_BND)))  # type: ignore[no-any-return]

    def emit(
        self,
        graph: GraphWriter,
        x: Value,
        pos: Value,
        places_NL2: Tensor,
        maps: Sequence[tuple[int, int]],
    ) -> Value:
        """Write the layer for one image."""
        read = self.self_attn.emit(graph, graph.add(x, pos), x, places_NL2, maps)
        x = graph.layer_norm(graph.add(x, read), self.norm1)
        return graph.layer_norm(graph.add(x, self.emit_feed(graph, x)), self.norm2)
