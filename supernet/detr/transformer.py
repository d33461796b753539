"""DETR's transformer, with keys of the original checkpoints; the encoder's attention has a core.

Post-norm. Position encodings are added to the inputs of queries and keys, never to those of values.

Shape suffixes: B batch, N tokens, Q object queries, D channels, H heads, E = D / H.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention import Attention
from ..graph.nodes import Value
from ..graph.writer import GraphWriter


class MultiheadAttention(nn.Module):
    """Projections in torch's layout (`in_proj` rows are q, k, v) around an attention core."""

    def __init__(
        self, width: int, heads: int, core: Attention | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)
        self.core = core or Attention()
        self.core.dropout = dropout

    def forward(
        self, q_BND: Tensor, k_BMD: Tensor, v_BMD: Tensor, pad_BM: Tensor | None = None
    ) -> Tensor:
        """Return the results of the queries; all inputs are before their projections."""
        D = q_BND.shape[-1]
        k_BMD, v_BMD, pad_BM = self.core.condense(k_BMD, v_BMD, pad_BM)
        q, k, v = (
            self._heads(F.linear(x, weight, bias))
            for x, weight, bias in zip(
                (q_BND, k_BMD, v_BMD),
                self.in_proj_weight.chunk(3),
                self.in_proj_bias.chunk(3),
                strict=True,
            )
        )
        read = self.core.attend(q * (D // self.heads) ** -0.5, k, v, pad_BM)
        return self.out_proj(read.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _heads(self, x_BND: Tensor) -> Tensor:
        B, N, D = x_BND.shape
        return x_BND.view(B, N, self.heads, D // self.heads).transpose(1, 2)

    def emit(self, graph: GraphWriter, q: Value, k: Value, v: Value) -> Value:
        """Write `forward` for [B, N, D] without padding."""
        E = q.shape[-1] // self.heads
        k, v = self.core.emit_condense(graph, k, v)
        parts = []
        for index, (x, weight, bias) in enumerate(
            zip((q, k, v), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3), strict=True)
        ):
            factor = E**-0.5 if index == 0 else 1.0
            y = graph.matmul(x, graph.const((weight * factor).T.contiguous()))
            parts.append(emit_heads(graph, graph.add(y, graph.const(bias * factor)), self.heads))
        read = self.core.emit_attend(graph, *parts)
        return graph.linear(emit_joined(graph, read, self.heads), self.out_proj)


def emit_heads(graph: GraphWriter, x: Value, heads: int) -> Value:
    """Write [B, N, D] as [B * H, N, E]."""
    B, N, D = x.shape
    x = graph.transpose(graph.reshape(x, B, N, heads, D // heads), 0, 2, 1, 3)
    return graph.reshape(x, B * heads, N, D // heads)


def emit_joined(graph: GraphWriter, x: Value, heads: int) -> Value:
    """Write [B * H, N, E] as [B, N, D]."""
    G, N, E = x.shape
    x = graph.transpose(graph.reshape(x, G // heads, heads, N, E), 0, 2, 1, 3)
    return graph.reshape(x, G // heads, N, heads * E)


class FeedForward(nn.Module):
    """The layers `linear1`, `linear2` of a transformer layer, as a base that adds them."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def feed(self, x: Tensor) -> Tensor:
        """Return `linear2(relu(linear1(x)))`, with dropout between."""
        return self.linear2(self.dropout(self.linear1(x).relu()))  # type: ignore[no-any-return]

    def emit_feed(self, graph: GraphWriter, x: Value) -> Value:
        """Write the layers."""
        return graph.linear(graph.unary("Relu", graph.linear(x, self.linear1)), self.linear2)


class EncoderLayer(FeedForward):
    """Self-attention of the tokens."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float, core: Attention):
        """Build attention, feed-forward and norms."""
        super().__init__(width, hidden, dropout)
        self.self_attn = MultiheadAttention(width, heads, core, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x_BND: Tensor, pos_BND: Tensor, pad_BN: Tensor | None) -> Tensor:
        """Return the input after the layer, of the same shape."""
        keys = x_BND + pos_BND
        read = self.self_attn(keys, keys, x_BND, pad_BN)
        x_BND = self.norm1(x_BND + self.dropout(read))
        return self.norm2(x_BND + self.dropout(self.feed(x_BND)))  # type: ignore[no-any-return]

    def emit(self, graph: GraphWriter, x: Value, pos: Value) -> Value:
        """Write the layer."""
        keys = graph.add(x, pos)
        x = graph.layer_norm(graph.add(x, self.self_attn.emit(graph, keys, keys, x)), self.norm1)
        return graph.layer_norm(graph.add(x, self.emit_feed(graph, x)), self.norm2)


class DecoderLayer(FeedForward):
    """Self-attention of the object queries, then attention to the tokens."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        """Build attention, feed-forward and norms."""
        super().__init__(width, hidden, dropout)
        self.self_attn = MultiheadAttention(width, heads, dropout=dropout)
        self.multihead_attn = MultiheadAttention(width, heads, dropout=dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(
        self,
        x_BQD: Tensor,
        query_BQD: Tensor,
        memory_BND: Tensor,
        pos_BND: Tensor,
        pad_BN: Tensor | None,
    ) -> Tensor:
        """Return the input after the layer, of the same shape."""
        own = x_BQD + query_BQD
        x_BQD = self.norm1(x_BQD + self.dropout(self.self_attn(own, own, x_BQD)))
        read = self.multihead_attn(x_BQD + query_BQD, memory_BND + pos_BND, memory_BND, pad_BN)
        x_BQD = self.norm2(x_BQD + self.dropout(read))
        return self.norm3(x_BQD + self.dropout(self.feed(x_BQD)))  # type: ignore[no-any-return]

    def emit(self, graph: GraphWriter, x: Value, query: Value, keys: Value, memory: Value) -> Value:
        """Write the layer; `keys` are the sum of memory and positions."""
        own = graph.add(x, query)
        x = graph.layer_norm(graph.add(x, self.self_attn.emit(graph, own, own, x)), self.norm1)
        read = self.multihead_attn.emit(graph, graph.add(x, query), keys, memory)
        x = graph.layer_norm(graph.add(x, read), self.norm2)
        return graph.layer_norm(graph.add(x, self.emit_feed(graph, x)), self.norm3)


class Encoder(nn.Module):
    """A stack of encoder layers."""

    def __init__(
        self, width: int, heads: int, hidden: int, dropout: float, cores: Sequence[Attention]
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, hidden, dropout, core) for core in cores
        )

    def forward(self, x_BND: Tensor, pos_BND: Tensor, pad_BN: Tensor | None) -> Tensor:
        """Return the tokens [B, N, D] after the last layer."""
        for layer in self.layers:
            x_BND = layer(x_BND, pos_BND, pad_BN)
        return x_BND

    def emit(self, graph: GraphWriter, x: Value, pos: Value) -> Value:
        """Write the layers."""
        for layer in self.layers:
            assert isinstance(layer, EncoderLayer)
            x = layer.emit(graph, x, pos)
        return x


class Decoder(nn.Module):
    """A stack of decoder layers, whose results share a last norm."""

    def __init__(self, layers: int, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(width, heads, hidden, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        query_BQD: Tensor,
        memory_BND: Tensor,
        pos_BND: Tensor,
        pad_BN: Tensor | None,
    ) -> Tensor:
        """Return every layer's result, [S, B, Q, D]."""
        x_BQD = torch.zeros_like(query_BQD)
        found = []
        for layer in self.layers:
            x_BQD = layer(x_BQD, query_BQD, memory_BND, pos_BND, pad_BN)
            found.append(self.norm(x_BQD))
        return torch.stack(found)

    def emit(self, graph: GraphWriter, query: Value, memory: Value, pos: Value) -> Value:
        """Write the last layer's result."""
        x = graph.const(torch.zeros(query.shape))
        keys = graph.add(memory, pos)
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            x = layer.emit(graph, x, query, keys, memory)
        return graph.layer_norm(x, self.norm)


class Mlp(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the last layer, without ReLU."""
        for number, layer in enumerate(self.layers, 1):
            x = layer(x)
            if number < len(self.layers):
                x = x.relu()
        return x

    def emit(self, graph: GraphWriter, x: Value) -> Value:
        """Write the layers."""
        for number, layer in enumerate(self.layers, 1):
            assert isinstance(layer, nn.Linear)
            x = graph.linear(x, layer)
            if number < len(self.layers):
                x = graph.unary("Relu", x)
        return x
